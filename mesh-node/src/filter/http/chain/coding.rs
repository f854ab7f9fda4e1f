//! Content codings: bodies that are encoded or decoded as they pass. What comes can be read as soon as it is there.
//!
//! Decoding is bounded: by how much more may come out than went in, and by the size of windows. A pod's peers choose
//! what is decoded, in a process that is not the pod's alone.

use std::cell::RefCell;
use std::io::{self, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use brotli::enc::BrotliEncoderParams;
use brotli::enc::backward_references::BrotliEncoderMode;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, MultiGzDecoder};
use http::HeaderMap;
use http_body::Frame;
use zstd::stream::write::{Decoder as ZstdDecoder, Encoder as ZstdEncoder};
use zstd::zstd_safe::{CParameter, Strategy};

use crate::http::body::{Body, BodyError};
use crate::model::http_filter::{BrotliMode, CodingStats, Decoder, Encoder, TrailerNames};

/// How much a codec of brotli works on at once.
const BROTLI_BUFFER: usize = 4096;
/// RFC 9659: a window of 8 MiB is what must be taken, and no more need be.
const ZSTD_WINDOW_LOG: u32 = 23;
/// Little input may say little of what comes out.
const ALWAYS_ALLOWED: usize = 64 << 10;

/// Where a codec writes, up to a limit.
#[derive(Clone)]
struct Sink(Rc<RefCell<Written>>);

struct Written {
    bytes: Vec<u8>,
    left: usize,
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut written = self.0.borrow_mut();
        written.left = written.left.checked_sub(data.len()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "more comes out of a compressed body than may")
        })?;
        written.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Codec {
    ToGzip(GzEncoder<Sink>),
    OfGzip(MultiGzDecoder<Sink>),
    ToBrotli(Box<brotli::CompressorWriter<Sink>>),
    OfBrotli(Box<brotli::DecompressorWriter<Sink>>),
    ToZstd(ZstdEncoder<'static, Sink>),
    OfZstd(ZstdDecoder<'static, Sink>),
}

impl Codec {
    fn encoder(how: &Encoder, sink: Sink) -> io::Result<Self> {
        Ok(match how {
            Encoder::Gzip { level: 0 } => Self::ToGzip(GzEncoder::new(sink, Compression::default())),
            Encoder::Gzip { level } => Self::ToGzip(GzEncoder::new(sink, Compression::new(*level))),
            Encoder::Brotli { quality, mode, window_bits, block_bits, no_literal_context } => {
                let params = BrotliEncoderParams {
                    quality: *quality,
                    lgwin: *window_bits,
                    lgblock: *block_bits,
                    mode: match mode {
                        BrotliMode::Generic => BrotliEncoderMode::BROTLI_MODE_GENERIC,
                        BrotliMode::Text => BrotliEncoderMode::BROTLI_MODE_TEXT,
                        BrotliMode::Font => BrotliEncoderMode::BROTLI_MODE_FONT,
                    },
                    disable_literal_context_modeling: i32::from(*no_literal_context),
                    ..BrotliEncoderParams::default()
                };
                Self::ToBrotli(Box::new(brotli::CompressorWriter::with_params(sink, BROTLI_BUFFER, &params)))
            }
            Encoder::Zstd { level, checksum, strategy, dictionary } => {
                let mut encoder = ZstdEncoder::with_dictionary(sink, *level, dictionary)?;
                encoder.include_checksum(*checksum)?;
                if let Some(strategy) = zstd_strategy(*strategy) {
                    encoder.set_parameter(CParameter::Strategy(strategy))?;
                }
                Self::ToZstd(encoder)
            }
        })
    }

    fn decoder(how: &Decoder, sink: Sink) -> io::Result<Self> {
        Ok(match how {
            Decoder::Gzip { .. } => Self::OfGzip(MultiGzDecoder::new(sink)),
            Decoder::Brotli => Self::OfBrotli(Box::new(brotli::DecompressorWriter::new(sink, BROTLI_BUFFER))),
            Decoder::Zstd { dictionary } => {
                let mut decoder = ZstdDecoder::with_dictionary(sink, dictionary)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Self::OfZstd(decoder)
            }
        })
    }

    /// Takes a piece; what it makes of all that came can be read then.
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        let writer: &mut dyn Write = match self {
            Self::ToGzip(codec) => codec,
            Self::OfGzip(codec) => codec,
            Self::ToBrotli(codec) => codec,
            Self::OfBrotli(codec) => codec,
            Self::ToZstd(codec) => codec,
            Self::OfZstd(codec) => codec,
        };
        writer.write_all(data)?;
        writer.flush()
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::ToGzip(codec) => codec.finish().map(drop),
            Self::OfGzip(codec) => codec.finish().map(drop),
            Self::ToBrotli(codec) => {
                codec.into_inner();
                Ok(())
            }
            Self::OfBrotli(mut codec) => codec.close(),
            Self::ToZstd(codec) => codec.finish().map(drop),
            Self::OfZstd(mut codec) => codec.flush(),
        }
    }
}

/// 1 to 9, as in the configuration; 0 leaves it to the library.
fn zstd_strategy(number: u32) -> Option<Strategy> {
    Some(match number {
        1 => Strategy::ZSTD_fast,
        2 => Strategy::ZSTD_dfast,
        3 => Strategy::ZSTD_greedy,
        4 => Strategy::ZSTD_lazy,
        5 => Strategy::ZSTD_lazy2,
        6 => Strategy::ZSTD_btlazy2,
        7 => Strategy::ZSTD_btopt,
        8 => Strategy::ZSTD_btultra,
        9 => Strategy::ZSTD_btultra2,
        _ => return None,
    })
}

/// The body, encoded as it is read.
pub(super) fn encoded(how: &Encoder, inner: Body, stats: &Arc<CodingStats>) -> Body {
    let sink = Sink(Rc::new(RefCell::new(Written { bytes: Vec::new(), left: usize::MAX })));
    let coded = Coded {
        inner,
        codec: Some(Codec::encoder(how, sink.clone()).map_err(Some)),
        sink,
        ratio: None,
        counts: Counts { stats: stats.clone(), encodes: true, taken: 0, given: 0 },
        tells: None,
        last: None,
    };
    Body::boxed(coded)
}

/// The body, decoded as it is read; trailers say how many bytes it was.
pub(super) fn decoded(
    how: &Decoder,
    inner: Body,
    stats: &Arc<CodingStats>,
    tells: &Arc<TrailerNames>,
) -> Body {
    let sink = Sink(Rc::new(RefCell::new(Written { bytes: Vec::new(), left: 0 })));
    let coded = Coded {
        inner,
        codec: Some(Codec::decoder(how, sink.clone()).map_err(Some)),
        sink,
        ratio: Some(how.most_times()),
        counts: Counts { stats: stats.clone(), encodes: false, taken: 0, given: 0 },
        tells: Some(tells.clone()),
        last: None,
    };
    Body::boxed(coded)
}

struct Coded {
    inner: Body,
    /// Until the end. An error is told when the body is read.
    codec: Option<Result<Codec, Option<io::Error>>>,
    sink: Sink,
    /// How many times as much may come out as went in.
    ratio: Option<usize>,
    counts: Counts,
    tells: Option<Arc<TrailerNames>>,
    /// Trailers, after the end of the data.
    last: Option<HeaderMap>,
}

/// Bytes that went in and came out.
struct Counts {
    stats: Arc<CodingStats>,
    encodes: bool,
    taken: u64,
    given: u64,
}

impl Counts {
    fn add(&mut self, taken: usize, given: usize) {
        let (taken, given) = (taken as u64, given as u64);
        self.taken += taken;
        self.given += given;
        let (plain, compressed) = if self.encodes { (taken, given) } else { (given, taken) };
        self.stats.total_uncompressed_bytes.add(plain);
        self.stats.total_compressed_bytes.add(compressed);
    }
}

impl Coded {
    fn take(&mut self, data: &[u8]) -> io::Result<Bytes> {
        let codec = match &mut self.codec {
            Some(Ok(codec)) => codec,
            Some(Err(error)) => return Err(error.take().unwrap_or_else(|| io::ErrorKind::Other.into())),
            None => return Ok(Bytes::new()),
        };
        if let Some(ratio) = self.ratio {
            let mut written = self.sink.0.borrow_mut();
            written.left = data.len().saturating_mul(ratio).max(ALWAYS_ALLOWED);
        }
        codec.write(data)?;
        let out = std::mem::take(&mut self.sink.0.borrow_mut().bytes);
        self.counts.add(data.len(), out.len());
        Ok(out.into())
    }

    /// The end of the data: what is still to come of it, and trailers.
    fn finish(&mut self, trailers: Option<HeaderMap>) -> Option<Result<Frame<Bytes>, BodyError>> {
        let codec = self.codec.take()?;
        let finished = match codec {
            Ok(codec) => codec.finish(),
            Err(error) => Err(error.unwrap_or_else(|| io::ErrorKind::Other.into())),
        };
        if let Err(error) = finished {
            return Some(Err(error.into()));
        }
        let rest = std::mem::take(&mut self.sink.0.borrow_mut().bytes);
        self.counts.add(0, rest.len());
        self.last = trailers;
        if let Some(names) = &self.tells {
            let trailers = self.last.get_or_insert_default();
            trailers.insert(names.compressed.clone(), self.counts.taken.into());
            trailers.insert(names.uncompressed.clone(), self.counts.given.into());
        }
        if rest.is_empty() {
            return self.last.take().map(|trailers| Ok(Frame::trailers(trailers)));
        }
        Some(Ok(Frame::data(rest.into())))
    }
}

impl http_body::Body for Coded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.codec.is_none() {
            return Poll::Ready(this.last.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        loop {
            let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(this.finish(None)),
            };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(frame) => return Poll::Ready(this.finish(frame.into_trailers().ok())),
            };
            match this.take(&data) {
                // A codec may wait for more before it gives anything.
                Ok(out) if out.is_empty() => {}
                Ok(out) => return Poll::Ready(Some(Ok(Frame::data(out)))),
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn encoders() -> Vec<(Encoder, Decoder)> {
        let brotli = |quality, mode| Encoder::Brotli {
            quality,
            mode,
            window_bits: 18,
            block_bits: 24,
            no_literal_context: quality == 3,
        };
        let zstd = |strategy, dictionary: &[u8]| Encoder::Zstd {
            level: 3,
            checksum: true,
            strategy,
            dictionary: dictionary.into(),
        };
        let of_zstd = |dictionary: &[u8]| Decoder::Zstd { dictionary: dictionary.into() };
        let mut all = vec![
            (Encoder::Gzip { level: 0 }, Decoder::Gzip { most_times: 100 }),
            (Encoder::Gzip { level: 9 }, Decoder::Gzip { most_times: 100 }),
            (brotli(3, BrotliMode::Generic), Decoder::Brotli),
            (brotli(11, BrotliMode::Text), Decoder::Brotli),
            (brotli(5, BrotliMode::Font), Decoder::Brotli),
            (zstd(0, b"line of words"), of_zstd(b"line of words")),
        ];
        all.extend((0..10).map(|strategy| (zstd(strategy, b""), of_zstd(b""))));
        all
    }

    fn names() -> Arc<TrailerNames> {
        let name = |name: &'static str| http::HeaderName::from_static(name);
        Arc::new(TrailerNames { compressed: name("x-compressed"), uncompressed: name("x-uncompressed") })
    }

    async fn read(body: Body) -> Result<(Vec<u8>, Option<HeaderMap>), BodyError> {
        let whole = body.collect().await?;
        let trailers = whole.trailers().cloned();
        Ok((whole.to_bytes().to_vec(), trailers))
    }

    #[tokio::test]
    async fn what_one_proxy_compresses_another_one_can_read() {
        let text: Vec<u8> = (0..3_000).flat_map(|i| format!("line of words {i}\n").into_bytes()).collect();
        let stats = Arc::<CodingStats>::default();
        for (encoder, decoder) in encoders() {
            let (packed, none) =
                read(encoded(&encoder, Body::from_bytes(text.clone()), &stats)).await.unwrap();
            assert!(packed.len() < text.len() / 3 && none.is_none(), "{encoder:?}: {}", packed.len());
            let both = encoded(&encoder, Body::from_bytes(text.clone()), &stats);
            let (plain, trailers) = read(decoded(&decoder, both, &stats, &names())).await.unwrap();
            assert_eq!(plain, text, "{encoder:?}");
            let trailers = trailers.unwrap();
            assert_eq!(trailers["x-uncompressed"], text.len().to_string().as_str());
            assert_eq!(trailers["x-compressed"], packed.len().to_string().as_str());
        }
    }

    #[tokio::test]
    async fn a_small_body_that_would_fill_the_memory_is_an_error() {
        let stats = Arc::<CodingStats>::default();
        for (encoder, decoder) in encoders() {
            let bomb = encoded(&encoder, Body::from_bytes(vec![0; 1 << 20]), &stats);
            let (packed, _) = read(bomb).await.unwrap();
            let error = read(decoded(&decoder, Body::from_bytes(packed), &stats, &names())).await;
            assert!(error.is_err(), "{encoder:?}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_not_what_it_says_is_an_error_or_empty() {
        let stats = Arc::<CodingStats>::default();
        for (_, decoder) in encoders() {
            let body = Body::from_bytes("this is not compressed at all");
            assert!(read(decoded(&decoder, body, &stats, &names())).await.is_err(), "{decoder:?}");
        }
    }
}
