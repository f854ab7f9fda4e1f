//! Draws stacks as a flame graph: SVG by hand, each box with its full name and share as a tooltip.
//!
//! It knows only names and counts; colours tell the kernel from the proxy.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::flame::{KERNEL, Stacks};

const WIDTH: f64 = 1200.0;
const ROW: f64 = 15.0;
const TOP: f64 = 30.0;
/// About the width of one letter of the labels.
const LETTER: f64 = 6.1;
/// Boxes below this share are left out: nobody could point at them.
const LEAST_SHARE: f64 = 0.002;

/// A function in the place where it was called.
#[derive(Default)]
struct Frame {
    samples: u64,
    calls: BTreeMap<String, Frame>,
}

/// The picture, outermost functions at the top.
pub fn draw(title: &str, stacks: &Stacks) -> String {
    let mut root = Frame::default();
    for (frames, samples) in stacks {
        let mut at = &mut root;
        at.samples += samples;
        for frame in frames {
            at = at.calls.entry(frame.clone()).or_default();
            at.samples += samples;
        }
    }
    let mut boxes = String::new();
    let depth = put(&root, 0.0, 0, root.samples.max(1) as f64, &mut boxes);
    let height = TOP + depth as f64 * ROW + 6.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         font-family=\"monospace\" font-size=\"10\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"6\" y=\"18\" font-size=\"13\" fill=\"#222\">{} ({} samples; blue: kernel)</text>\n\
         {boxes}</svg>\n",
        escaped(title),
        root.samples
    )
}

/// Draws what `frame` calls; the number of rows that takes.
fn put(frame: &Frame, mut x: f64, depth: usize, all: f64, out: &mut String) -> usize {
    let mut deepest = depth;
    for (name, call) in &frame.calls {
        let share = call.samples as f64 / all;
        let width = share * WIDTH;
        if share >= LEAST_SHARE {
            let y = TOP + depth as f64 * ROW;
            let letters = (width / LETTER) as usize;
            let _ = write!(
                out,
                "<g><title>{} {:.1}%</title><rect x=\"{x:.1}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"{:.0}\" \
                 fill=\"{}\"/>",
                escaped(name),
                share * 100.0,
                (width - 0.5).max(0.5),
                ROW - 1.0,
                colour(name),
            );
            if letters >= 4 {
                let _ = write!(
                    out,
                    "<text x=\"{:.1}\" y=\"{:.0}\">{}</text>",
                    x + 2.0,
                    y + 10.5,
                    escaped(&label(name, letters - 1))
                );
            }
            out.push_str("</g>\n");
            deepest = deepest.max(put(call, x, depth + 1, all, out)).max(depth + 1);
        }
        x += width;
    }
    deepest
}

/// The last parts of a path tell more than the first.
fn label(name: &str, letters: usize) -> String {
    let length = name.chars().count();
    if length <= letters { name.to_owned() } else { name.chars().skip(length - letters).collect() }
}

fn colour(name: &str) -> String {
    let spread = name.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 40;
    if name.ends_with(KERNEL) {
        format!("rgb({},{},{})", 120 + spread, 170 + spread, 215 + spread % 30)
    } else {
        format!("rgb({},{},{})", 225 + spread % 25, 130 + spread, 60 + spread)
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_is_as_wide_as_its_share_and_hides_no_markup() {
        let stack = |frames: &[&str]| frames.iter().map(|frame| (*frame).to_owned()).collect::<Vec<_>>();
        let stacks =
            Stacks::from([(stack(&["worker", "<T as A>::poll"]), 3), (stack(&["worker", "ip_rcv"]), 1)]);
        let picture = draw("a & b", &stacks);
        assert!(picture.contains("<title>&lt;T as A&gt;::poll 75.0%</title><rect x=\"0.0\""), "{picture}");
        assert!(picture.contains("<title>ip_rcv 25.0%</title><rect x=\"900.0\""), "{picture}");
        assert!(picture.contains("a &amp; b"));
    }
}
