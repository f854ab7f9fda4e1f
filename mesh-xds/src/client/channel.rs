//! gRPC connections to servers. One connection to a server is shared by all streams to it.
//!
//! How bytes get there (addresses, TLS, whose certificate) is the business of [`Connect`].

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint, Uri};

/// A connection's bytes.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection on its way.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// Opens connections to one server.
pub trait Connect: Send + Sync + fmt::Debug {
    fn connect(&self) -> Connecting;
}

/// What a stream's requests carry beside their messages. Asked each time a stream is opened, so that a token
/// file that has changed is read again.
pub trait Credentials: Send + Sync + fmt::Debug {
    /// Header names (lower case) and values.
    ///
    /// # Errors
    /// When there is nothing to show to the server, in one line.
    fn metadata(&self) -> Result<Vec<(String, String)>, String>;
}

/// The same headers for every stream.
impl Credentials for Vec<(String, String)> {
    fn metadata(&self) -> Result<Vec<(String, String)>, String> {
        Ok(self.clone())
    }
}

#[derive(Debug)]
struct Both(Arc<dyn Credentials>, Arc<dyn Credentials>);

impl Credentials for Both {
    fn metadata(&self) -> Result<Vec<(String, String)>, String> {
        let mut all = self.0.metadata()?;
        all.extend(self.1.metadata()?);
        Ok(all)
    }
}

/// What a connection to a server is like.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// For logs and the admin pages: the name of the cluster, or a target.
    pub name: String,
    /// `:authority` of requests.
    pub authority: String,
    /// A PING goes out after that much silence; a server that does not answer in `keepalive_timeout` is gone.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
}

/// A server, connected to when a stream asks for it.
#[derive(Debug, Clone)]
pub struct Server {
    pub name: Arc<str>,
    pub(super) channel: Channel,
    pub(super) credentials: Arc<dyn Credentials>,
    /// For what is not gRPC.
    pub(super) connect: Arc<dyn Connect>,
    pub(super) authority: Arc<str>,
}

/// Room for the large responses of a control plane.
const WINDOW_BYTES: u32 = 1 << 20;

impl Server {
    /// The same connection for streams that show something else.
    pub fn with_credentials(&self, credentials: Arc<dyn Credentials>) -> Self {
        Self { credentials, ..self.clone() }
    }

    /// The same connection for streams that show this as well.
    pub fn showing_also(&self, more: Arc<dyn Credentials>) -> Self {
        let credentials = Arc::new(Both(self.credentials.clone(), more));
        self.with_credentials(credentials)
    }

    /// # Errors
    /// When `authority` cannot stand in a URI.
    pub fn new(options: &ServerOptions, connect: Arc<dyn Connect>) -> Result<Self, String> {
        // The scheme only decides what the requests say: TLS is the connector's.
        let endpoint = Endpoint::from_shared(format!("http://{}", options.authority))
            .map_err(|error| format!("{:?} is no authority: {error}", options.authority))?
            .http2_keep_alive_interval(options.keepalive_interval)
            .keep_alive_timeout(options.keepalive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let through = connect.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let connecting = through.connect();
            async move { connecting.await.map(TokioIo::new) }
        });
        let channel = endpoint.connect_with_connector_lazy(connector);
        Ok(Self {
            name: options.name.as_str().into(),
            channel,
            credentials: Arc::new(Vec::new()),
            connect,
            authority: options.authority.as_str().into(),
        })
    }
}
