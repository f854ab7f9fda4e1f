//! Policies of the services' own sidecars: who may call them, and how. The answers come through both halves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::process::deadline;

use crate::call::Ask;
use crate::rules::get;
use crate::stage::{DETAILS, RATINGS, Side, Stage};

/// A policy: what it is called, its resource, requests and their statuses while it is in force.
type Policy = (&'static str, &'static str, fn() -> Vec<(Ask, u16)>);

const POLICIES: [Policy; 3] = [
    (
        "authorization: a path is denied",
        "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ratings, namespace: default}
spec:
  selector: {matchLabels: {app: ratings}}
  action: DENY
  rules: [{to: [{operation: {paths: ['/admin*'], methods: [GET]}}]}]
",
        || {
            let post = get(RATINGS, "/admin").method("POST").with("content-length", "0");
            vec![(get(RATINGS, "/admin/x"), 403), (post, 200), (get(RATINGS, "/ratings/0"), 200)]
        },
    ),
    (
        "authorization: only with a header",
        "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ratings, namespace: default}
spec:
  selector: {matchLabels: {app: ratings}}
  action: ALLOW
  rules: [{to: [{operation: {ports: ['9080']}}], when: [{key: 'request.headers[x-role]', values: [admin, 'o*']}]}]
",
        || {
            let with = |role| get(RATINGS, "/ratings/0").with("x-role", role);
            let without = get(RATINGS, "/ratings/0");
            vec![(without, 403), (with("admin"), 200), (with("owner"), 200), (with("admins"), 403)]
        },
    ),
    (
        "mutual TLS only: plain text is refused",
        "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: details, namespace: default}
spec:
  selector: {matchLabels: {app: details}}
  mtls: {mode: STRICT}
",
        || vec![(get(DETAILS, "/details/0"), 503), (get(RATINGS, "/ratings/0"), 200)],
    ),
];

/// Applies every policy in turn and checks it, and that it is gone when it is taken away.
pub fn all_hold(stage: &Stage) -> Result<()> {
    for (name, yaml, asked) in POLICIES {
        let start = Instant::now();
        stage.rules("policy", yaml).with_context(|| format!("applying {name}"))?;
        for (ask, status) in asked() {
            comes(stage, &ask, status).with_context(|| name.to_owned())?;
        }
        stage.istiod.nothing_was_refused().with_context(|| name.to_owned())?;
        stage.istiod.remove("policy", yaml)?;
        for (ask, _) in asked() {
            comes(stage, &ask, 200).with_context(|| format!("{name}: after it"))?;
        }
        eprintln!("{name:<44} {:>5} ms", start.elapsed().as_millis());
    }
    Ok(())
}

/// Waits until a request is answered so: what the service's sidecar has taken, its clients are not told.
fn comes(stage: &Stage, ask: &Ask, status: u16) -> Result<()> {
    let until = Instant::now() + deadline();
    loop {
        let answer = stage.ask(Side::Mesh, ask)?;
        if answer.status == status {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{ask:?} is answered {}, not {status}", answer.status);
        std::thread::sleep(Duration::from_millis(30)); // the period of the poll
    }
}
