//! TCP connections inside HTTP requests (`tunneling_config`): the host is a proxy, which is asked by CONNECT or POST for
//! a connection to where the client wants to go (Envoy: `TcpProxy::HttpUpstream`).

use http::header::HOST;
use http::uri::{Authority, Uri};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version};

use super::WorkerContext;
use super::http::put;
use super::tcp_relay::Way;
use crate::cluster::RoutingPriority;
use crate::http::body::Body;
use crate::http::stream_body::{StreamBody, write_all};
use crate::model::network::Tunnel;
use crate::pipe::pipe;
use crate::stream::Stream;
use crate::telemetry::format::{Context, Missing, evaluate};
use crate::telemetry::stream_info::StreamInfo;
use crate::upstream::{ErrorKind, Target, UpstreamError, UpstreamStream};

/// Opens a tunnel through the target's host. Nothing of the client's is sent before the host has agreed.
///
/// # Errors
/// The host cannot be reached, or does not agree.
pub(super) async fn open(
    tunnel: &Tunnel,
    target: &Target,
    stream: &StreamInfo,
    ctx: &WorkerContext,
) -> Result<Way, UpstreamError> {
    let (ours, theirs) = pipe();
    let (read, write) = tokio::io::split(theirs);
    let request = request(tunnel, stream, Body::boxed(StreamBody::new(read, ())))?;
    let exchange = ctx.upstreams.request(target, RoutingPriority::Default, Version::HTTP_11, request).await?;
    let status = exchange.response.status();
    let agreed = match exchange.protocol {
        Version::HTTP_2 => status == StatusCode::OK,
        _ => status.is_success(),
    };
    if !agreed {
        let reason = format!("the proxy answers {status}");
        return Err(UpstreamError::with(ErrorKind::ConnectFailure, reason));
    }
    tokio::task::spawn_local(write_all(exchange.response.into_body(), write));
    let stream = UpstreamStream::Raw(Stream::Memory(ours));
    Ok(Way { stream, facts: exchange.connection, guard: None })
}

fn request(tunnel: &Tunnel, stream: &StreamInfo, body: Body) -> Result<Request<Body>, UpstreamError> {
    let context = Context::of(stream);
    let text = |format, missing| {
        let mut text = String::new();
        evaluate(format, &context, missing, &mut text);
        text
    };
    let host = text(&tunnel.host, Missing::Dash);
    let unusable = |_| UpstreamError::with(ErrorKind::ConnectFailure, format!("{host:?} is no host"));
    let mut headers = HeaderMap::new();
    let value = HeaderValue::try_from(&host).map_err(|_| unusable(()))?;
    headers.insert(HOST, value);
    for add in &tunnel.headers {
        put(add, text(&add.value, Missing::Empty), &mut headers);
    }
    let mut request = Request::new(body);
    match &tunnel.post_path {
        Some(path) => {
            *request.method_mut() = Method::POST;
            *request.uri_mut() = path.parse::<Uri>().map_err(|_| unusable(()))?;
        }
        None => {
            *request.method_mut() = Method::CONNECT;
            *request.uri_mut() = host.parse::<Authority>().map(Uri::from).map_err(|_| unusable(()))?;
        }
    }
    *request.headers_mut() = headers;
    Ok(request)
}
