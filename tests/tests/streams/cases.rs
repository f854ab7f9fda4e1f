//! What applications do with a connection, step by step. Each case is played without a mesh, by TCP through the
//! proxy, and past TCP; every answer must be the same but for the differences that are listed here.

use anyhow::{Result, ensure};
use mesh_tests::puppet::{Puppet, Scene};

use crate::stage::{Differences, Known, Stage, same_as_tcp};

const NO_SPLICE: &str = "bytes past TCP cannot be spliced out; where the kernel shows who tries, his pod is left alone from \
                         then on, elsewhere such a pod has to be left out";

const SAME: Differences = Differences { proxied: &[], accelerated: &[] };

#[test]
fn streams_of_1_byte_to_8_mib_arrive_whole_both_ways_at_once_and_end() -> Result<()> {
    same_as_tcp(
        |scene| {
            for size in [1_u32, 2, 100, 1000, 4096, 16_384, 65_535, 65_537, 262_144, 1 << 20, 8 << 20] {
                scene.open("a")?;
                scene.both(&format!("exchange a {size} {size}"), &format!("exchange a {size} {size}"))?;
                scene.client("shutdown a write")?;
                scene.server("recv a 1")?;
                scene.server("shutdown a write")?;
                scene.client("recv a 1")?;
                close(scene)?;
            }
            Ok(())
        },
        &SAME,
    )
}

#[test]
fn one_way_streams_arrive_whole_whoever_sends_them() -> Result<()> {
    same_as_tcp(
        |scene| {
            for size in [1_u32, 5000, 100_000, 2 << 20] {
                scene.open("a")?;
                scene.both(&format!("send a {size}"), &format!("recv a {size}"))?;
                close(scene)?;
                scene.open("a")?;
                scene.both(&format!("recv a {size}"), &format!("send a {size}"))?;
                close(scene)?;
            }
            Ok(())
        },
        &SAME,
    )
}

#[test]
fn a_side_that_has_half_closed_still_gets_everything() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            scene.client("send a 5000")?;
            scene.client("shutdown a write")?;
            scene.server("recv a 6000")?;
            scene.both("recv a 300000", "send a 300000")?;
            scene.server("shutdown a write")?;
            scene.client("recv a 1")?;
            close(scene)?;
            scene.open("b")?;
            scene.server("send b 5000")?;
            scene.server("shutdown b write")?;
            scene.client("recv b 6000")?;
            scene.both("send b 300000", "recv b 300000")?;
            scene.client("shutdown b both")?;
            scene.server("recv b 1")?;
            scene.server("close b")?;
            scene.client("close b")
        },
        &SAME,
    )
}

fn close(scene: &mut Scene) -> Result<()> {
    scene.client("close a")?;
    scene.server("close a")
}

#[test]
fn a_reset_reaches_the_other_side_after_what_it_could_read() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            scene.both("exchange a 100 100", "exchange a 100 100")?;
            scene.client("linger a 0")?;
            scene.client("close a")?;
            scene.server("recv a 1")?;
            scene.server("close a")?;
            scene.open("b")?;
            scene.both("exchange b 100 100", "exchange b 100 100")?;
            scene.server("linger b 0")?;
            scene.server("close b")?;
            scene.client("recv b 1")?;
            scene.client("close b")
        },
        &SAME,
    )
}

/// Whose end got lost on its way, as resets may: the next byte is answered by the kernel, for the connection that is
/// no more.
#[test]
fn a_side_that_is_gone_without_a_word_is_noticed_when_something_is_sent_to_it() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            scene.both("exchange a 100 100", "exchange a 100 100")?;
            scene.server("silent a 1")?;
            scene.server("close a")?;
            scene.client("send a 1")?;
            scene.client("recv a 1")?;
            scene.client("close a")
        },
        &SAME,
    )
}

#[test]
fn a_close_that_lingers_loses_nothing() -> Result<()> {
    same_as_tcp(
        |scene| {
            for blocking in [0, 1] {
                scene.open("a")?;
                scene.both("exchange a 100 100", "exchange a 100 100")?;
                scene.client("linger a 5")?;
                scene.client("send a 50000")?;
                scene.client(&format!("blocking a {blocking}"))?;
                scene.client("close a")?;
                scene.server("recv a 50001")?;
                scene.server("close a")?;
            }
            Ok(())
        },
        &SAME,
    )
}

#[test]
fn a_slow_reader_gets_every_byte() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            scene.both("exchange a 2000000 0", "exchange a 0 2000000 500")?;
            scene.both("exchange a 0 2000000 500", "exchange a 2000000 0")?;
            scene.server("receive_buffer a 4096")?;
            scene.both("exchange a 300000 0", "exchange a 0 300000 300")?;
            close(scene)
        },
        &SAME,
    )
}

#[test]
fn fionread_tells_what_can_be_read() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            scene.client("send a 1000")?;
            scene.server("fionread a 1000")?;
            scene.server("recv a 400")?;
            scene.server("fionread a 600")?;
            scene.client("send a 5000")?;
            scene.server("fionread a 5600")?;
            scene.server("recv a 5600")?;
            scene.server("fionread a 0")?;
            scene.server("send a 20000")?;
            scene.client("fionread a 20000")?;
            scene.client("recv a 20000")?;
            scene.client("shutdown a write")?;
            scene.server("recv a 1")?;
            scene.server("fionread a 0")?;
            close(scene)
        },
        &SAME,
    )
}

#[test]
fn readiness_is_told_as_long_as_it_lasts_by_level_triggered_epoll() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            scene.server("epoll a level")?;
            scene.server("events a 0")?;
            scene.client("send a 100")?;
            scene.server("fionread a 100")?;
            scene.server("events a 0")?;
            scene.server("once a 40")?;
            scene.server("events a 0")?;
            scene.server("once a 1000")?;
            scene.server("events a 0")?;
            scene.client("shutdown a write")?;
            scene.server("poll a in 8000")?;
            scene.server("events a 0")?;
            close(scene)
        },
        &SAME,
    )
}

#[test]
fn readiness_is_told_once_for_what_comes_by_edge_triggered_epoll() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            scene.server("epoll a edge")?;
            scene.server("events a 0")?;
            for _ in 0..30 {
                scene.client("send a 100")?;
                scene.server("fionread a 100")?;
                scene.server("events a 8000")?;
                scene.server("events a 0")?;
                scene.server("once a 40")?;
                scene.server("events a 0")?;
                scene.client("send a 10")?;
                scene.server("fionread a 70")?;
                scene.server("events a 8000")?;
                scene.server("once a 1000")?;
                scene.server("events a 0")?;
            }
            scene.client("shutdown a write")?;
            scene.server("poll a in 8000")?;
            scene.server("events a 0")?;
            close(scene)
        },
        &SAME,
    )
}

#[test]
fn poll_waits_as_long_as_it_is_told_and_no_longer_than_until_something_comes() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            scene.server("poll a in 50")?;
            scene.both("send a 10", "poll a in 8000")?;
            scene.server("recv a 10")?;
            scene.server("poll a in 50")?;
            scene.both("poll a in 8000", "send a 10")?;
            scene.client("recv a 10")?;
            scene.client("poll a out 8000")?;
            scene.both("shutdown a write", "poll a in 8000")?;
            close(scene)
        },
        &SAME,
    )
}

#[test]
fn every_call_that_sends_sends_the_same_bytes() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            for how in ["write", "vectored", "more", "sendfile", "splice"] {
                for size in [1, 3000, 1_000_000] {
                    scene.both(&format!("send a {size} {how}"), &format!("recv a {size}"))?;
                    scene.both(&format!("recv a {size}"), &format!("send a {size} {how}"))?;
                }
            }
            close(scene)
        },
        &SAME,
    )
}

#[test]
fn peeking_shows_what_is_read_next_and_takes_nothing() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            scene.client("send a 1000")?;
            scene.server("fionread a 1000")?;
            scene.server("peek a 100")?;
            scene.server("peek a 2000")?;
            scene.server("recv a 300")?;
            scene.server("peek a 2000")?;
            scene.server("recv a 700")?;
            scene.server("peek a 10")?;
            scene.server("once a 10")?;
            scene.client("shutdown a write")?;
            scene.server("poll a in 8000")?;
            scene.server("peek a 10")?;
            scene.server("once a 10")?;
            close(scene)
        },
        &SAME,
    )
}

/// The mark is set on a connection that is accelerated already; the ones after it are not.
#[test]
fn a_low_water_mark_holds_readiness_back() -> Result<()> {
    same_as_tcp(
        |scene| {
            for name in ["a", "b", "c"] {
                scene.open(name)?;
                scene.both(&format!("exchange {name} 10 10"), &format!("exchange {name} 10 10"))?;
                scene.server(&format!("low_watermark {name} 1000"))?;
                scene.client(&format!("send {name} 500"))?;
                scene.server(&format!("fionread {name} 500"))?;
                scene.server(&format!("poll {name} in 0"))?;
                scene.client(&format!("send {name} 600"))?;
                scene.server(&format!("fionread {name} 1100"))?;
                scene.server(&format!("poll {name} in 8000"))?;
                scene.server(&format!("recv {name} 1100"))?;
                scene.both(&format!("exchange {name} 2000 10"), &format!("exchange {name} 10 2000"))?;
                scene.client(&format!("close {name}"))?;
                scene.server(&format!("close {name}"))?;
            }
            Ok(())
        },
        &Differences {
            proxied: &[],
            accelerated: &[
                Known {
                    step: "server: low_watermark a 1000",
                    answer: "EPERM",
                    reason: "it would not hold for what comes past TCP, so an accelerated socket is refused it",
                    optional: true,
                },
                Known {
                    step: "server: poll a in 0",
                    answer: "in",
                    reason: "there is no mark then",
                    optional: true,
                },
            ],
        },
    )
}

/// They are asked for on a connection that is accelerated already; the ones after it are not.
#[test]
fn sends_without_copy_are_completed() -> Result<()> {
    same_as_tcp(
        |scene| {
            for name in ["a", "b", "c"] {
                scene.open(name)?;
                scene.both(&format!("exchange {name} 10 10"), &format!("exchange {name} 10 10"))?;
                scene.client(&format!("zerocopy {name} 1"))?;
                // By now it can be noticed.
                for _ in 0..3 {
                    scene.both(&format!("exchange {name} 10 10"), &format!("exchange {name} 10 10"))?;
                }
                scene.both(&format!("send {name} 200000 zerocopy"), &format!("recv {name} 200000"))?;
                scene.client(&format!("completions {name}"))?;
                scene.client(&format!("close {name}"))?;
                scene.server(&format!("close {name}"))?;
            }
            Ok(())
        },
        &Differences {
            proxied: &[],
            accelerated: &[
                Known {
                    step: "client: zerocopy a 1",
                    answer: "EPERM",
                    reason: "past TCP nothing is completed, so an accelerated socket is refused it: sends copy",
                    optional: true,
                },
                Known {
                    step: "client: completions a",
                    answer: "1 completions are missing",
                    reason: "there are none where it was refused",
                    optional: true,
                },
            ],
        },
    )
}

#[test]
fn a_reader_and_a_writer_thread_of_a_blocking_socket_see_no_error() -> Result<()> {
    same_as_tcp(
        |scene| {
            for name in ["a", "b", "c", "d"] {
                scene.open(name)?;
                scene.both(&format!("exchange {name} 10 10"), &format!("exchange {name} 10 10"))?;
                scene.both(
                    &format!("threads {name} 500000 500000"),
                    &format!("threads {name} 500000 500000"),
                )?;
                scene.client(&format!("close {name}"))?;
                scene.server(&format!("close {name}"))?;
            }
            Ok(())
        },
        &SAME,
    )
}

#[test]
fn a_blocking_reader_waits_until_its_time_is_over_or_something_comes() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            scene.both("exchange a 10 10", "exchange a 10 10")?;
            scene.server("blocking a 1")?;
            scene.server("receive_timeout_ms a 100")?;
            scene.server("once a 10")?;
            scene.server("receive_timeout_ms a 8000")?;
            for _ in 0..20 {
                scene.both("send a 10", "once a 10")?;
            }
            scene.both("shutdown a write", "once a 10")?;
            close(scene)
        },
        &SAME,
    )
}

#[test]
fn waiting_bytes_can_be_spliced_out() -> Result<()> {
    same_as_tcp(
        |scene| {
            for name in ["a", "b", "c"] {
                scene.open(name)?;
                scene.client(&format!("send {name} 1000"))?;
                scene.server(&format!("fionread {name} 1000"))?;
                scene.server(&format!("spliced {name} 1000"))?;
                scene.client(&format!("close {name}"))?;
                scene.server(&format!("close {name}"))?;
            }
            Ok(())
        },
        &Differences {
            proxied: &[],
            accelerated: &[
                Known {
                    step: "server: spliced a 1000",
                    answer: "EAGAIN",
                    reason: NO_SPLICE,
                    optional: false,
                },
                Known { step: "server: spliced b 1000", answer: "EAGAIN", reason: NO_SPLICE, optional: true },
                Known { step: "server: spliced c 1000", answer: "EAGAIN", reason: NO_SPLICE, optional: true },
            ],
        },
    )
}

#[test]
fn a_close_with_unread_data_is_told_to_the_other_side() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            scene.both("exchange a 10 10", "exchange a 10 10")?;
            scene.client("send a 1000")?;
            scene.server("fionread a 1000")?;
            scene.server("close a")?;
            scene.client("recv a 1")?;
            scene.client("close a")
        },
        &Differences {
            proxied: &[],
            accelerated: &[Known {
                step: "client: recv a 1",
                answer: "0 and the end",
                reason: "what waits past TCP does not count as unread at a close",
                optional: false,
            }],
        },
    )
}

#[test]
fn an_urgent_byte_does_not_disturb_the_others() -> Result<()> {
    same_as_tcp(
        |scene| {
            scene.open("a")?;
            scene.both("exchange a 10 10", "exchange a 10 10")?;
            scene.server("inline a 1")?;
            scene.client("send a 100")?;
            scene.client("send a 1 urgent")?;
            scene.client("send a 100")?;
            scene.server("recv a 201")?;
            close(scene)
        },
        &Differences {
            proxied: &[
                Known {
                    step: "server: recv a 201",
                    answer: "100 and nothing more",
                    reason: "the proxy reads up to an urgent byte, and on when more comes",
                    optional: true,
                },
                Known {
                    step: "server: recv a 201",
                    answer: "byte 110 is not the one sent",
                    reason: "the proxy leaves urgent bytes out, as a sidecar does",
                    optional: true,
                },
            ],
            accelerated: &[Known {
                step: "server: recv a 201",
                answer: "201 right",
                reason: "an urgent byte past TCP is one like the others",
                optional: true,
            }],
        },
    )
}

#[test]
fn a_port_is_used_again_while_its_last_connection_rests_in_time_wait() -> Result<()> {
    same_as_tcp(
        |scene| {
            for round in 0..12 {
                scene.open_from("a", 41_000)?;
                scene.both("exchange a 3000 20000", "exchange a 20000 3000")?;
                // Who closes first has the port in TIME_WAIT.
                if round % 2 == 0 {
                    scene.server("close a")?;
                    scene.client("recv a 1")?;
                    scene.client("close a")?;
                } else {
                    scene.client("shutdown a write")?;
                    scene.server("recv a 1")?;
                    scene.server("close a")?;
                    scene.client("recv a 1")?;
                    scene.client("close a")?;
                }
            }
            Ok(())
        },
        &SAME,
    )
}

#[test]
fn what_is_sent_before_the_connection_is_accepted_arrives_first() -> Result<()> {
    same_as_tcp(
        |scene| {
            for name in ["a", "b"] {
                scene.client(&format!("connect {name} TO"))?;
                scene.client(&format!("send {name} 5"))?;
                scene.client(&format!("send {name} 50000"))?;
                scene.client(&format!("shutdown {name} write"))?;
                scene.server(&format!("accept {name}"))?;
                scene.server(&format!("recv {name} 50006"))?;
                scene.server(&format!("send {name} 50000"))?;
                scene.server(&format!("close {name}"))?;
                scene.client(&format!("recv {name} 50001"))?;
            }
            Ok(())
        },
        &SAME,
    )
}

/// Their addresses, ports and all, are the same in both pods.
#[test]
fn loopback_connections_of_two_pods_do_not_meet() -> Result<()> {
    mesh_tests::need_root!();
    let stage = Stage::new()?;
    let mut mesh = stage.mesh()?;
    stage.enrol(&mut mesh)?;
    stage.accelerate(&mesh)?;
    let mut pairs = Vec::new();
    for (pod, seed) in [(&stage.client, 5), (&stage.server, 6)] {
        let (mut client, mut server) = (Puppet::start(pod)?, Puppet::start(pod)?);
        for puppet in [&mut client, &mut server] {
            puppet.ask(&format!("seed {seed}"))?;
        }
        ensure!(server.ask("listen 127.0.0.1:9300")? == "listening");
        pairs.push((client, server));
    }
    for round in 0..20 {
        for (client, server) in &mut pairs {
            server.begin("accept a")?;
            let answer = client.ask("connect a 127.0.0.1:9300 127.0.0.1:42000")?;
            ensure!(answer == "connected", "round {round}: {answer}");
            server.answer()?;
        }
        for (client, server) in &mut pairs {
            client.begin("exchange a 100000 200000")?;
            server.begin("exchange a 200000 100000")?;
        }
        for (client, server) in &mut pairs {
            for (puppet, wanted) in
                [(client, "sent 100000, 200000 right"), (server, "sent 200000, 100000 right")]
            {
                let answer = puppet.answer()?;
                ensure!(answer == wanted, "round {round}: {answer}");
            }
        }
        for (client, server) in &mut pairs {
            client.ask("close a")?;
            server.ask("recv a 1")?;
            server.ask("close a")?;
        }
    }
    Ok(())
}
