//! What scripts are told of the stream and its connection (Envoy's reference, "Stream info object API", "Connection
//! object API", "SSL connection object API").

use std::rc::Rc;
use std::sync::Arc;

use mlua::{MetaMethod, UserData, UserDataMethods, Value};

use super::super::super::stream::Stream;
use super::values::{from_lua, pairs_of, table_of};
use crate::telemetry::certificate;
use crate::telemetry::protocol;
use crate::telemetry::stream_info::{ConnectionInfo, TlsInfo};

/// A stream info object.
pub(super) struct StreamFacts(pub(super) Rc<Stream>);

/// A dynamic metadata object.
struct DynamicMetadata(Rc<Stream>);

/// A connection object.
pub(super) struct Connection(pub(super) Arc<ConnectionInfo>);

/// An SSL connection object; there is a session.
struct Session(Arc<ConnectionInfo>);

impl UserData for StreamFacts {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("protocol", |_, this, ()| Ok(this.0.info.borrow().protocol.map(protocol)));
        methods.add_method("routeName", |_, this, ()| {
            Ok(this.0.info.borrow().route_name.as_deref().unwrap_or_default().to_owned())
        });
        methods.add_method("virtualClusterName", |_, this, ()| {
            Ok(this.0.info.borrow().virtual_cluster.as_deref().unwrap_or_default().to_owned())
        });
        for name in ["downstreamLocalAddress", "downstreamDirectLocalAddress"] {
            methods.add_method(name, |_, this, ()| Ok(this.0.manager.connection.local.to_string()));
        }
        methods.add_method("downstreamDirectRemoteAddress", |_, this, ()| {
            Ok(this.0.manager.connection.remote.to_string())
        });
        methods
            .add_method("downstreamRemoteAddress", |_, this, ()| Ok(this.0.info.borrow().remote.to_string()));
        methods.add_method("requestedServerName", |_, this, ()| {
            Ok(this.0.manager.connection.requested_server_name.clone().unwrap_or_default())
        });
        methods.add_method("dynamicMetadata", |_, this, ()| Ok(DynamicMetadata(this.0.clone())));
        methods.add_method("downstreamSslConnection", |_, this, ()| Ok(session(&this.0.manager.connection)));
    }
}

impl UserData for DynamicMetadata {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("get", |lua, this, filter: String| {
            let info = this.0.info.borrow();
            let found = info.metadata.as_ref().and_then(|all| all.get(&filter));
            found.map(|fields| table_of(lua, fields)).transpose()
        });
        methods.add_method("set", |_, this, (filter, key, value): (String, String, Value)| {
            let value = from_lua(&value, 0)?;
            this.0.info.borrow_mut().metadata_mut().entry(filter).or_default().insert(key, value);
            Ok(())
        });
        methods.add_meta_method(MetaMethod::Pairs, |lua, this, ()| {
            let info = this.0.info.borrow();
            let all = info.metadata.iter().flat_map(|all| all.iter());
            let all =
                all.map(|(key, fields)| (key.clone(), serde_json::Value::Object(fields.clone()))).collect();
            pairs_of(lua, &all)
        });
    }
}

impl UserData for Connection {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("ssl", |_, this, ()| Ok(session(&this.0)));
    }
}

fn session(connection: &Arc<ConnectionInfo>) -> Option<Session> {
    connection.tls.is_some().then(|| Session(connection.clone()))
}

impl Session {
    fn tls(&self) -> Option<&TlsInfo> {
        self.0.tls.as_deref()
    }
}

impl UserData for Session {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        // What is not verified ends in the handshake.
        for name in ["peerCertificatePresented", "peerCertificateValidated"] {
            methods
                .add_method(name, |_, this, ()| Ok(this.tls().is_some_and(|tls| !tls.peer_chain.is_empty())));
        }
        methods.add_method("uriSanLocalCertificate", |_, this, ()| {
            Ok(this.tls().map(|tls| tls.local_uri_sans.iter().map(|san| san.to_string()).collect::<Vec<_>>()))
        });
        methods.add_method("uriSanPeerCertificate", |_, this, ()| {
            Ok(this.tls().map(|tls| tls.peer_uri_sans.clone()))
        });
        methods.add_method("dnsSansPeerCertificate", |_, this, ()| {
            Ok(this.tls().map(|tls| tls.peer_dns_sans.clone()))
        });
        methods.add_method("subjectPeerCertificate", |_, this, ()| {
            Ok(this.tls().and_then(|tls| tls.peer_subject.clone()).unwrap_or_default())
        });
        methods.add_method("issuerPeerCertificate", |_, this, ()| {
            Ok(this.tls().and_then(|tls| tls.peer_issuer.clone()).unwrap_or_default())
        });
        methods.add_method("sha256PeerCertificateDigest", |_, this, ()| {
            let leaf = this.tls().and_then(|tls| tls.peer_chain.first());
            Ok(leaf.map(|leaf| certificate::sha256_hex(leaf)).unwrap_or_default())
        });
        methods.add_method("urlEncodedPemEncodedPeerCertificate", |_, this, ()| {
            let leaf = this.tls().and_then(|tls| tls.peer_chain.first());
            Ok(leaf.map(|leaf| certificate::url_encoded_pem(leaf)).unwrap_or_default())
        });
        methods.add_method("tlsVersion", |_, this, ()| Ok(this.tls().map_or("", |tls| tls.version)));
        methods.add_method("ciphersuiteString", |_, this, ()| Ok(this.tls().map_or("", |tls| tls.cipher)));
    }
}
