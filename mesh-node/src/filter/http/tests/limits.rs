//! What requests meet when their workload holds too much already.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::support::{
    Proxy, Reaction, Server, cluster, connection, forward_to, hcm, retry_policy, route, routes, run, to,
};
use crate::budget::{Budget, Held, Purse};
use crate::capture::local_workload;
use crate::model::workload::WorkloadLimits;
use crate::telemetry::stream_info::ConnectionInfo;

const MAX: usize = 1 << 20;

/// A proxy for a workload that may hold [`MAX`] bytes, with a route that retries.
fn limited(server: &Server) -> (Proxy, Arc<Budget>) {
    let budget = Arc::new(Budget::new("default/hog", MAX));
    let mut workload = Arc::into_inner(local_workload("hog")).unwrap();
    workload.limits = Arc::new(WorkloadLimits { buffers: budget.clone(), ..WorkloadLimits::default() });
    let mut forward = forward_to("up");
    forward.retry = Some(Arc::new(retry_policy()));
    let mut config = hcm();
    config.routes = routes(vec![route("/", to(forward))]);
    let mut proxy = Proxy::logged(config, vec![cluster("up", &[server.address])]);
    let workload = Some(Arc::new(workload));
    proxy.connection = Arc::new(ConnectionInfo { workload, ..connection("192.0.2.9:4000") });
    (proxy, budget)
}

fn held(budget: &Arc<Budget>, bytes: usize) -> Held {
    let held = Held::new(Some(Purse::of(budget)));
    held.set(bytes);
    held
}

#[test]
fn at_the_limit_a_new_request_is_503_and_below_it_served_again() {
    run(async {
        let server =
            Server::start(vec![Reaction::Send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into())]).await;
        let (proxy, budget) = limited(&server);
        let full = held(&budget, MAX);
        let mut client = proxy.connect();
        client.send("GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answer = client.answer().await;
        assert_eq!((answer.status(), answer.body.as_str()), (503, "envoy overloaded"));
        assert_eq!(proxy.log_lines(), ["GET /a 503 OM overload 0 16 0"]);
        assert_eq!(proxy.hcm.stats.downstream_rq_overload_close.get(), 1);
        assert_eq!(budget.refusals().requests.load(Ordering::Relaxed), 1);
        drop(full);
        client.send("GET /b HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(client.answer().await.status(), 200);
        client.leave().await;
        drop(proxy);
        assert_eq!(budget.buffered(), 0, "what a connection held is given back with it");
    });
}

#[test]
fn near_the_limit_a_body_is_not_kept_for_a_retry_and_the_first_answer_stands() {
    run(async {
        let failed = || Reaction::Send("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n".into());
        let server = Server::start(vec![failed(), failed(), failed(), failed()]).await;
        let (proxy, budget) = limited(&server);
        let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
        let pressed = held(&budget, MAX - MAX / 4);
        assert_eq!(proxy.ask(post).await.status(), 500);
        assert_eq!(server.requests.borrow().len(), 1);
        assert_eq!(budget.refusals().retries.load(Ordering::Relaxed), 1);
        let stats = &proxy.ctx.clusters.get("up").unwrap().stats;
        assert_eq!((stats.retry_or_shadow_abandoned.get(), stats.upstream_rq_retry.get()), (1, 0));
        drop(pressed);
        assert_eq!(proxy.ask(post).await.status(), 500);
        assert_eq!(server.requests.borrow().len(), 4, "with room the body is kept and sent three times");
    });
}
