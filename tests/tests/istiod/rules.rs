//! Bookinfo's rules as a user writes them, each with what it must do, through every proxy of a stage.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::process::deadline;
use serde_json::json;

use crate::call::Ask;
use crate::stage::{DETAILS, RATINGS, REVIEWS, Side, Stage};

const SUBSETS: &str = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews.default.svc.cluster.local
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
---
";

/// A rule: what it is called, its resources, what must hold.
type Rule = (&'static str, String, fn(&Stage) -> Result<()>);

/// Applies every rule in turn and checks it.
pub fn all_hold(stage: &Stage) -> Result<()> {
    for (name, yaml, check) in rules() {
        let start = Instant::now();
        let yaml = yaml.replace("ADDRESS_OF_EXTERNAL", &stage.external.pod.v4().to_string());
        stage.rules("rule", &yaml).with_context(|| format!("applying {name}"))?;
        check(stage).with_context(|| format!("rule {name}"))?;
        stage.istiod.nothing_was_refused().with_context(|| format!("rule {name}"))?;
        stage.istiod.remove("rule", &yaml).with_context(|| format!("removing {name}"))?;
        eprintln!("{name:<44} {:>5} ms", start.elapsed().as_millis());
    }
    Ok(())
}

fn rule(name: &'static str, yaml: String, check: fn(&Stage) -> Result<()>) -> Rule {
    (name, yaml, check)
}

fn rules() -> Vec<Rule> {
    vec![
        rule("none", SUBSETS.to_owned(), without_rules),
        rule("everything to v1", to_reviews("[{route: [{destination: {host: reviews, subset: v1}}]}]"), everything_to_v1),
        rule(
            "50/50 between v1 and v3",
            to_reviews(
                "[{route: [{destination: {host: reviews, subset: v1}, weight: 50}, \
                 {destination: {host: reviews, subset: v3}, weight: 50}]}]",
            ),
            fifty_fifty,
        ),
        rule(
            "header match: jason sees v2",
            to_reviews(
                "[{match: [{headers: {end-user: {exact: jason}}}], route: [{destination: {host: reviews, subset: v2}}]}, \
                 {route: [{destination: {host: reviews, subset: v1}}]}]",
            ),
            jason_sees_v2,
        ),
        rule(
            "matches on path, method, query, header",
            to_reviews(
                "[{match: [{uri: {regex: '/a[0-9]+/b'}, method: {exact: POST}}, {uri: {prefix: /p}, queryParams: {v: {exact: '3'}}}, \
                 {headers: {x-any: {prefix: th}}, withoutHeaders: {x-not: {}}}], \
                 route: [{destination: {host: reviews, subset: v3}}]}, \
                 {match: [{uri: {exact: /Exact}, ignoreUriCase: true}], route: [{destination: {host: reviews, subset: v2}}]}, \
                 {route: [{destination: {host: reviews, subset: v1}}]}]",
            ),
            matches,
        ),
        rule(
            "fault: delay for jason",
            to("ratings", "[{match: [{headers: {end-user: {exact: jason}}}], \
                 fault: {delay: {percentage: {value: 100}, fixedDelay: 600ms}}, route: [{destination: {host: ratings}}]}, \
                 {route: [{destination: {host: ratings}}]}]"),
            delay_for_jason,
        ),
        rule(
            "fault: abort for jason",
            to("ratings", "[{match: [{headers: {end-user: {exact: jason}}}], \
                 fault: {abort: {percentage: {value: 100}, httpStatus: 555}}, route: [{destination: {host: ratings}}]}, \
                 {route: [{destination: {host: ratings}}]}]"),
            abort_for_jason,
        ),
        rule(
            "timeout",
            to("ratings", "[{timeout: 300ms, route: [{destination: {host: ratings}}]}]"),
            timeout,
        ),
        rule(
            "retries",
            to("ratings", "[{retries: {attempts: 3, retryOn: '5xx', perTryTimeout: 2s}, route: [{destination: {host: ratings}}]}]"),
            retries,
        ),
        rule(
            "mirror to v3",
            to_reviews(
                "[{route: [{destination: {host: reviews, subset: v1}}], mirror: {host: reviews, subset: v3}, \
                 mirrorPercentage: {value: 100}}]",
            ),
            mirror,
        ),
        rule(
            "redirect and direct response",
            to("details", "[{match: [{uri: {prefix: /old}}], redirect: {uri: /new, authority: elsewhere.example, redirectCode: 308}}, \
                 {match: [{uri: {exact: /teapot}}], directResponse: {status: 418, body: {string: short and stout}}}, \
                 {route: [{destination: {host: details}}]}]"),
            redirects,
        ),
        rule(
            "rewrite and headers",
            to("details", "[{match: [{uri: {prefix: /api/v1/}}], rewrite: {uri: /, authority: inner.example}, \
                 headers: {request: {set: {x-set: a}, add: {x-added: b}, remove: [x-gone]}, response: {set: {x-answer: c}, remove: [x-backend]}}, \
                 route: [{destination: {host: details}, headers: {response: {add: {x-of-destination: d}}}}]}, \
                 {match: [{uri: {prefix: /re}}], rewrite: {uriRegexRewrite: {match: '^/re/([^/]+)/(.*)$', rewrite: '/\\2/\\1'}}, \
                 route: [{destination: {host: details}}]}, \
                 {route: [{destination: {host: details}}]}]"),
            rewrites,
        ),
        rule(
            "CORS",
            to("details", "[{corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], allowMethods: [GET, POST], allowHeaders: [x-h], \
                 maxAge: 24h, allowCredentials: true}, route: [{destination: {host: details}}]}]"),
            cors,
        ),
        rule(
            "consistent hash in a subset's policy",
            format!(
                "{}\n---\n{}",
                "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews.default.svc.cluster.local
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy:
      loadBalancer: {consistentHash: {httpHeaderName: x-user}}
      connectionPool: {tcp: {maxConnections: 100, connectTimeout: 2s}, http: {http1MaxPendingRequests: 50, maxRequestsPerConnection: 10}}
      outlierDetection: {consecutive5xxErrors: 50, interval: 10s, baseEjectionTime: 30s}",
                virtual_service("reviews", "[{route: [{destination: {host: reviews, subset: v1}}]}]")
            ),
            consistent_hash,
        ),
        rule("a subset without endpoints", format!("{}{}", SUBSETS.replace("version: v2", "version: none"),
            virtual_service("reviews", "[{route: [{destination: {host: reviews, subset: v2}}]}]")), no_endpoints),
        rule("egress: known and unknown hosts", external(), egress),
        rule("egress: registry only", format!("{}\n---\n{}", external(), "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: default}
spec:
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  egress: [{hosts: ['*/*']}]"), registry_only),
    ]
}

fn virtual_service(host: &str, http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {host}, namespace: default}}\n\
         spec: {{hosts: [{host}.default.svc.cluster.local], http: {}}}\n",
        // The short names of one namespace, written out as standalone needs them.
        http.replace(&format!("host: {host}"), &format!("host: {host}.default.svc.cluster.local"))
    )
}

fn to(host: &str, http: &str) -> String {
    virtual_service(host, http)
}

fn to_reviews(http: &str) -> String {
    format!("{SUBSETS}{}", virtual_service("reviews", http))
}

fn external() -> String {
    "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: external, namespace: default}
spec:
  hosts: [external.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: ADDRESS_OF_EXTERNAL}]"
        .to_owned()
}

/// A request to one of the services.
pub fn get(to: SocketAddr, path: &str) -> Ask {
    let service = match to {
        REVIEWS => "reviews",
        RATINGS => "ratings",
        _ => "details",
    };
    Ask::get(to, &format!("{service}:9080"), path)
}

fn jason(ask: Ask) -> Ask {
    ask.with("end-user", "jason")
}

/// Versions of reviews that answer so many requests through one proxy.
fn versions(stage: &Stage, side: Side, count: usize) -> Result<BTreeMap<String, usize>> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let by = stage.ask(side, &get(REVIEWS, "/reviews/0"))?.by();
        let version = by.split('-').nth(1).with_context(|| format!("answered by {by:?}"))?.to_owned();
        *seen.entry(version).or_default() += 1;
    }
    Ok(seen)
}

fn without_rules(stage: &Stage) -> Result<()> {
    stage.agree(&get(RATINGS, "/ratings/0"))?;
    stage.agree(&get(DETAILS, "/details/0?x=1").method("HEAD"))?;
    stage.agree(&get(DETAILS, "/status/404"))?;
    for side in stage.sides() {
        let seen = versions(stage, side, 100)?;
        ensure!(seen.len() == 3 && seen["v1"] > seen["v2"], "{side:?}: {seen:?}");
    }
    Ok(())
}

fn everything_to_v1(stage: &Stage) -> Result<()> {
    for side in stage.sides() {
        ensure!(versions(stage, side, 30)? == BTreeMap::from([("v1".to_owned(), 30)]), "{side:?}");
    }
    Ok(())
}

fn fifty_fifty(stage: &Stage) -> Result<()> {
    for side in stage.sides() {
        let seen = versions(stage, side, 300)?;
        let v1 = seen.get("v1").copied().unwrap_or(0);
        // Five standard deviations of a fair coin.
        ensure!(seen.len() == 2 && seen.contains_key("v3") && v1.abs_diff(150) < 44, "{side:?}: {seen:?}");
    }
    Ok(())
}

fn jason_sees_v2(stage: &Stage) -> Result<()> {
    ensure!(stage.agree(&jason(get(REVIEWS, "/reviews/0")))?.by() == "reviews-v2", "jason");
    for side in stage.sides() {
        ensure!(versions(stage, side, 20)? == BTreeMap::from([("v1".to_owned(), 20)]), "{side:?}");
    }
    Ok(())
}

fn matches(stage: &Stage) -> Result<()> {
    let expect = |ask: Ask, version: &str| -> Result<()> {
        for side in stage.sides() {
            let by = stage.ask(side, &ask)?.by();
            ensure!(by.starts_with(&format!("reviews-{version}")), "{side:?}: {ask:?} went to {by}");
        }
        Ok(())
    };
    expect(get(REVIEWS, "/a12/b").method("POST").with("content-length", "0"), "v3")?;
    expect(get(REVIEWS, "/a12/b"), "v1")?;
    expect(get(REVIEWS, "/page?v=3"), "v3")?;
    expect(get(REVIEWS, "/page?v=33"), "v1")?;
    expect(get(REVIEWS, "/").with("x-any", "thing"), "v3")?;
    expect(get(REVIEWS, "/").with("x-any", "thing").with("x-not", ""), "v1")?;
    expect(get(REVIEWS, "/eXACT"), "v2")
}

fn delay_for_jason(stage: &Stage) -> Result<()> {
    for side in stage.sides() {
        let took = stage.ask(side, &jason(get(RATINGS, "/ratings/0")))?.took;
        // That it was delayed, by 600 ms; not how well a timer keeps time: Envoy's may be some milliseconds early.
        ensure!(took >= Duration::from_millis(300), "{side:?}: {took:?}");
    }
    stage.agree(&jason(get(RATINGS, "/ratings/0")))?;
    stage.agree(&get(RATINGS, "/ratings/0")).map(drop)
}

fn abort_for_jason(stage: &Stage) -> Result<()> {
    ensure!(stage.agree(&jason(get(RATINGS, "/ratings/0")))?.status == 555, "no abort");
    ensure!(stage.agree(&get(RATINGS, "/ratings/0"))?.status == 200, "aborted for all");
    Ok(())
}

fn timeout(stage: &Stage) -> Result<()> {
    let slow = stage.agree(&get(RATINGS, "/slow").with("x-slow", "1500"))?;
    ensure!(slow.status == 504, "{slow:?}");
    ensure!(stage.agree(&get(RATINGS, "/slow").with("x-slow", "1"))?.status == 200, "in time");
    Ok(())
}

fn retries(stage: &Stage) -> Result<()> {
    for (failures, status) in [("0", 200), ("1", 200), ("3", 200), ("4", 503)] {
        let answer = stage.agree(&get(RATINGS, "/flaky").with("x-fail", failures))?;
        ensure!(answer.status == status, "after {failures} failures: {answer:?}");
    }
    Ok(())
}

fn mirror(stage: &Stage) -> Result<()> {
    for side in stage.sides() {
        let before = stage.hits("reviews", "v3");
        ensure!(versions(stage, side, 25)? == BTreeMap::from([("v1".to_owned(), 25)]), "{side:?}");
        let until = Instant::now() + deadline();
        while stage.hits("reviews", "v3") - before != 25 {
            ensure!(
                Instant::now() < until,
                "{side:?}: {} of 25 mirrored",
                stage.hits("reviews", "v3") - before
            );
            std::thread::sleep(Duration::from_millis(10)); // the period of the poll
        }
    }
    Ok(())
}

fn redirects(stage: &Stage) -> Result<()> {
    let moved = stage.agree(&get(DETAILS, "/old/page?q=1"))?;
    ensure!(
        moved.status == 308 && moved.headers["location"].starts_with("http://elsewhere.example/new"),
        "{moved:?}"
    );
    ensure!(stage.agree(&get(DETAILS, "/teapot"))?.status == 418, "direct response");
    ensure!(stage.agree(&get(DETAILS, "/teapots"))?.status == 200, "other path");
    Ok(())
}

fn rewrites(stage: &Stage) -> Result<()> {
    let answer =
        stage.agree(&get(DETAILS, "/api/v1/details/0?q=1").with("x-gone", "1").with("x-added", "a"))?;
    let seen = answer.seen();
    ensure!(seen["path"] == "/details/0?q=1" && seen["headers"]["host"] == "inner.example", "{seen}");
    ensure!(seen["headers"]["x-set"] == "a" && seen["headers"]["x-gone"].is_null(), "{seen}");
    ensure!(answer.headers["x-answer"] == "c" && !answer.headers.contains_key("x-backend"), "{answer:?}");
    ensure!(stage.agree(&get(DETAILS, "/re/one/two"))?.seen()["path"] == "/two/one", "regex rewrite");
    Ok(())
}

fn cors(stage: &Stage) -> Result<()> {
    let origin = |ask: Ask, origin: &str| ask.with("origin", origin);
    stage.agree(&origin(get(DETAILS, "/"), "https://a.example"))?;
    stage.agree(&origin(get(DETAILS, "/"), "https://b.example"))?;
    let preflight = get(DETAILS, "/").method("OPTIONS").with("access-control-request-method", "POST");
    let allowed = stage.agree(&origin(preflight.clone(), "https://a.example"))?;
    ensure!(allowed.headers.contains_key("access-control-allow-origin"), "{allowed:?}");
    stage.agree(&origin(preflight, "https://b.example")).map(drop)
}

fn consistent_hash(stage: &Stage) -> Result<()> {
    // The cluster is another one now, which waits for its endpoints.
    stage.settled()?;
    let mut chosen = BTreeMap::new();
    for user in 0..30 {
        let ask = get(REVIEWS, "/").with("x-user", &format!("user-{user}"));
        // Both proxies must choose the same pod, and always the same.
        let by = stage.agree(&ask)?.by();
        ensure!(stage.agree(&ask)?.by() == by, "user {user} moved");
        *chosen.entry(by).or_insert(0) += 1;
    }
    ensure!(chosen.len() == 3, "{chosen:?}");
    Ok(())
}

fn no_endpoints(stage: &Stage) -> Result<()> {
    let answer = stage.agree(&get(REVIEWS, "/"))?;
    ensure!(answer.status == 503, "{answer:?}");
    Ok(())
}

/// Any address outside: with HTTP the host decides.
fn outside() -> SocketAddr {
    "192.0.2.1:80".parse().expect("an address")
}

fn egress(stage: &Stage) -> Result<()> {
    stage.settled()?;
    let known = stage.agree(&Ask::get(outside(), "external.example", "/known"))?;
    ensure!(known.by() == "external-v1", "{known:?}");
    // Nobody knows this host: the connection goes where it was going.
    let direct = SocketAddr::from((stage.external.pod.v4(), 80));
    let unknown = stage.agree(&Ask::get(direct, "unknown.example", "/unknown"))?;
    ensure!(unknown.by() == "external-v1", "{unknown:?}");
    Ok(())
}

fn registry_only(stage: &Stage) -> Result<()> {
    stage.settled()?;
    let known = stage.agree(&Ask::get(outside(), "external.example", "/known"))?;
    ensure!(known.by() == "external-v1", "{known:?}");
    let unknown =
        stage.agree(&Ask::get(SocketAddr::from((stage.external.pod.v4(), 80)), "unknown.example", "/"))?;
    ensure!(unknown.status == 502, "{unknown:?}");
    // No service has this port: the connection ends without a byte.
    for side in stage.sides() {
        let elsewhere = Ask::get(SocketAddr::from((stage.external.pod.v4(), 81)), "unknown.example", "/");
        let answer = elsewhere.from(stage.client(side));
        ensure!(matches!(answer, Ok(None)), "{side:?}: {answer:?}");
    }
    Ok(())
}

/// What the load sends to while pushes come: reviews, with a rule that each push changes.
pub fn split(v1: u32) -> String {
    let v3 = 100 - v1;
    let routes = json!([{ "route": [
        { "destination": { "host": "reviews.default.svc.cluster.local", "subset": "v1" }, "weight": v1 },
        { "destination": { "host": "reviews.default.svc.cluster.local", "subset": "v3" }, "weight": v3 },
    ] }]);
    to_reviews(&routes.to_string())
}
