//! `cargo test -p mesh-tests --test interop`: mesh-node under a go-control-plane server, while clients send.
//!
//! Needs Go; without it every test says so and passes.

mod h2spec;
mod own_run;
mod server;

use std::time::Duration;

use mesh_tests::load::Load;
use mesh_tests::process::deadline;
use server::{Mesh, Protocol, Push};

/// Requests of so many connections are under way all the time.
const CONNECTIONS: usize = 64;

/// Runs `test` against each form of the protocol.
fn under_each(test: impl AsyncFn(&mut Mesh)) {
    let Some(program) = server::build() else { return };
    for protocol in [Protocol::DeltaAds, Protocol::Ads, Protocol::PerType] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut mesh = Mesh::start(&program, protocol).await;
            test(&mut mesh).await;
        });
    }
}

#[test]
fn a_thousand_pushes_while_clients_send_fail_no_request() {
    under_each(async |mesh| {
        mesh.push(&Push::default()).await;
        mesh.serves("0").await;
        let load = Load::start(CONNECTIONS, mesh.listener(), "a");
        for version in 1..=1000 {
            // Routes change every time, endpoints and clusters now and then.
            let push = Push { version, second_endpoint: version % 3 == 0, timeout_s: 5 + version / 100 };
            mesh.push(&push).await;
        }
        mesh.serves("1000").await;
        load.end().await.none_failed();
        assert_eq!(mesh.nacks().await, [""; 0]);
    });
}

#[test]
fn a_server_that_is_away_and_comes_back_fails_no_request() {
    under_each(async |mesh| {
        mesh.push(&Push::default()).await;
        mesh.serves("0").await;
        let load = Load::start(CONNECTIONS, mesh.listener(), "a");
        mesh.kill_server();
        mesh.disconnected().await;
        // With `cargo xtask conformance --long` for as long as a control plane may be gone in an upgrade.
        if std::env::var_os("MESH_LONG").is_some() {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        load.more(2000).await;
        mesh.restart_server().await;
        mesh.push(&Push { version: 1, ..Push::default() }).await;
        mesh.serves("1").await;
        load.end().await.none_failed();
    });
}

#[test]
fn a_cluster_in_use_that_is_removed_and_comes_back_fails_no_request() {
    under_each(async |mesh| {
        mesh.push(&Push::default()).await;
        mesh.serves("0").await;
        let load = Load::start(CONNECTIONS, mesh.listener(), "a");
        for _ in 0..10 {
            mesh.push_without_cluster().await;
            load.more(200).await;
            mesh.push(&Push::default()).await;
            load.more(200).await;
        }
        load.end().await.none_failed();
    });
}

#[test]
fn a_bad_cluster_is_refused_by_name_and_the_rest_of_the_push_applies() {
    under_each(async |mesh| {
        mesh.push(&Push::default()).await;
        mesh.serves("0").await;
        mesh.push_with_bad_cluster(1).await;
        mesh.serves("1").await;
        let until = tokio::time::Instant::now() + deadline();
        while mesh.nacks().await.is_empty() {
            assert!(tokio::time::Instant::now() < until, "no NACK");
            // The server's record is all there is to ask.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let nacks = mesh.nacks().await;
        assert!(nacks[0].starts_with("bad: cluster.lb_policy: CLUSTER_PROVIDED"), "{nacks:?}");
        let (name, reason) = nacks[0].split_once(": ").unwrap();
        assert_eq!(mesh.error_states().await, [(name.to_owned(), reason.to_owned())]);
        assert!(mesh.stat("cluster_manager.cds.update_rejected").await >= 1);
        // It is gone with the next good push.
        mesh.push(&Push { version: 2, ..Push::default() }).await;
        mesh.serves("2").await;
        mesh.forgets_errors().await;
    });
}
