//! A stream of access logs to a server.

use futures_util::stream;
use tokio::sync::mpsc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

use super::Server;
use crate::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};

const METHOD: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
/// Messages that wait for a slow server; the owner drops what does not fit.
const WAITING: usize = 16;

/// Opens a stream on the current runtime. It is closed when the server ends it or cannot be reached; then the sender
/// is too, `ended` is told the reason, and the next stream is the owner's to open.
pub fn send_logs(
    server: &Server,
    ended: impl FnOnce(&str) + Send + 'static,
) -> mpsc::Sender<StreamAccessLogsMessage> {
    let (sender, messages) = mpsc::channel(WAITING);
    let server = server.clone();
    tokio::spawn(async move {
        if let Err(status) = run(server, messages).await {
            ended(status.message());
        }
    });
    sender
}

async fn run(server: Server, messages: mpsc::Receiver<StreamAccessLogsMessage>) -> Result<(), tonic::Status> {
    let outgoing = stream::unfold(messages, |mut from: mpsc::Receiver<StreamAccessLogsMessage>| async move {
        from.recv().await.map(|message| (message, from))
    });
    let mut request = tonic::Request::new(outgoing);
    super::stream::add_metadata(request.metadata_mut(), &*server.credentials)
        .map_err(tonic::Status::unauthenticated)?;
    let mut client = tonic::client::Grpc::new(server.channel);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<StreamAccessLogsMessage, StreamAccessLogsResponse>::default();
    client.client_streaming(request, PathAndQuery::from_static(METHOD), codec).await.map(drop)
}
