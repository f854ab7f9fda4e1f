//! Scripts on requests and responses, with Envoy's stream handle.

use std::sync::Arc;

use super::support::{
    Answer, Proxy, Reaction, Server, add, cluster, filter, forward_to, hcm, route, routes, run, to,
};
use crate::model::Str;
use crate::model::http_filter::{HttpFilterKind, Override};
use crate::model::lua::{LuaChoice, LuaFilter, LuaOfRoute, Script};
use crate::model::metadata::MetadataValue;
use crate::model::network::HttpConnectionManager;
use crate::model::route::{Action, DirectResponse};
use crate::telemetry::stats::Counter;

fn script(source: &str) -> Arc<Script> {
    Arc::new(Script { source: source.to_owned() })
}

fn lua(source: &str) -> LuaFilter {
    LuaFilter {
        default: Some(script(source)),
        named: Default::default(),
        clear_route_cache: true,
        context: Arc::new([]),
        errors: Arc::default(),
        executions: Arc::default(),
    }
}

struct Scene {
    proxy: Proxy,
    server: Server,
    errors: Arc<Counter>,
}

impl Scene {
    async fn new(source: &str) -> Self {
        Self::with(vec![Reaction::Echo], lua(source), |_| {}).await
    }

    async fn with(
        script: Vec<Reaction>,
        own: LuaFilter,
        change: impl FnOnce(&mut HttpConnectionManager),
    ) -> Self {
        let server = Server::start(script).await;
        let mut config = hcm();
        config.routes = routes(vec![route("/", to(forward_to("up")))]);
        let errors = own.errors.clone();
        config.http_filters.insert(0, filter(HttpFilterKind::Lua(Arc::new(own))));
        change(&mut config);
        let clusters = vec![cluster("up", &[server.address]), cluster("other", &[server.address])];
        Self { proxy: Proxy::new(config, clusters), server, errors }
    }

    async fn get(&self) -> Answer {
        self.proxy.get("/p?q").await
    }

    async fn post(&self, body: &str) -> Answer {
        let request = format!("POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        self.proxy.ask(&request).await
    }
}

#[test]
fn headers_are_read_and_changed_by_envoys_names() {
    run(async {
        let scene = Scene::new(
            r#"function envoy_on_request(h)
                 local headers = h:headers()
                 headers:add("x-path", headers:get(":path"))
                 headers:add("x-host", headers:get("Host"))
                 headers:add("x-two", "1"); headers:add("x-two", "2")
                 headers:add("x-joined", headers:get("x-two"))
                 headers:add("x-second", headers:getAtIndex("x-two", 1))
                 headers:add("x-number", headers:getNumValues("x-two"))
                 headers:replace("x-two", "3")
                 headers:remove("user-agent")
                 headers:replace(":path", "/other")
                 headers:replace(":authority", "b")
                 local names = ""
                 for name, value in pairs(headers) do names = names .. name .. ";" end
                 headers:add("x-names", names)
                 headers:add("x-missing", tostring(headers:get("x-none")))
               end"#,
        )
        .await;
        scene.proxy.ask("GET /p?q HTTP/1.1\r\nhost: a\r\nuser-agent: me\r\n\r\n").await;
        let request = scene.server.seen(1).await.remove(0);
        assert!(request.starts_with("GET /other HTTP/1.1\r\nhost: b\r\n"), "{request}");
        for line in [
            "x-path: /p?q",
            "x-host: a",
            "x-joined: 1,2",
            "x-second: 2",
            "x-number: 2",
            "x-two: 3",
            "x-missing: nil",
        ] {
            assert!(request.contains(&format!("\r\n{line}\r\n")), "{line} in {request}");
        }
        assert!(request.contains("x-names: :authority;:path;:method;:scheme;"), "{request}");
        assert!(!request.contains("user-agent") && !request.contains("x-two: 1"), "{request}");
        assert_eq!(scene.errors.get(), 0);
    });
}

#[test]
fn a_response_can_be_changed_whole() {
    run(async {
        let scene = Scene::new(
            r#"function envoy_on_response(h)
                 h:headers():add("x-status", h:headers():get(":status"))
                 local size = h:body():setBytes("<html>")
                 h:headers():replace("content-type", "text/html")
                 h:headers():add("x-size", size)
                 h:headers():replace(":status", "404")
               end"#,
        )
        .await;
        let answer = scene.get().await;
        assert_eq!((answer.status(), answer.body.as_str()), (404, "<html>"));
        assert_eq!(answer.header("content-length"), Some("6"));
        assert_eq!((answer.header("x-status"), answer.header("x-size")), (Some("200"), Some("6")));
    });
}

#[test]
fn a_body_is_waited_for_and_may_be_replaced() {
    run(async {
        let scene = Scene::new(
            r#"function envoy_on_request(h)
                 local body = h:body()
                 if body == nil then h:headers():add("x-none", "1") return end
                 h:headers():add("x-length", body:length())
                 h:headers():add("x-part", body:getBytes(1, 3))
                 body:setBytes(string.upper(body:getBytes(0, body:length())))
               end"#,
        )
        .await;
        scene.post("hello").await;
        scene.get().await;
        let requests = scene.server.seen(2).await;
        assert!(
            requests[0].contains("x-length: 5\r\n") && requests[0].contains("x-part: ell\r\n"),
            "{}",
            requests[0]
        );
        assert!(requests[0].ends_with("\r\n\r\nHELLO"), "{}", requests[0]);
        assert!(requests[1].contains("x-none: 1\r\n"), "{}", requests[1]);
    });
}

#[test]
fn chunks_pass_one_by_one_and_the_last_one_may_be_kept() {
    run(async {
        let scene = Scene::new(
            r#"function envoy_on_request(h)
                 local last
                 for chunk in h:bodyChunks() do
                   if chunk:length() > 0 then chunk:setBytes("[" .. chunk:getBytes(0, chunk:length()) .. "]") end
                   last = chunk
                 end
                 last:setBytes(last:getBytes(0, last:length()) .. "end")
               end"#,
        )
        .await;
        let mut client = scene.proxy.connect();
        client.send("POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        client.send("2\r\nde\r\n").await;
        client.send("0\r\n\r\n").await;
        let answer = client.answer().await;
        let sent: String = answer.body.split("\r\n\r\n").nth(1).unwrap().into();
        let data: String = sent.split("\r\n").skip(1).step_by(2).collect();
        assert!(["[abcde]end", "[abc][de]end"].contains(&data.as_str()), "{}", answer.body);
        assert_eq!(scene.errors.get(), 0);
    });
}

#[test]
fn a_script_answers_itself() {
    run(async {
        let scene = Scene::new(
            r#"function envoy_on_request(h)
                 h:respond({[":status"] = "403", ["x-why"] = "because", ["set-cookie"] = {"a=1", "b=2"}}, "nope")
                 h:headers():add("never", "here")
               end
               function envoy_on_response(h) h:headers():add("x-seen", "1") end"#,
        )
        .await;
        let answer = scene.get().await;
        assert_eq!((answer.status(), answer.body.as_str()), (403, "nope"));
        assert_eq!((answer.header("x-why"), answer.header("x-seen")), (Some("because"), Some("1")));
        assert_eq!(answer.names().iter().filter(|name| **name == "set-cookie").count(), 2);
        assert!(scene.server.requests.borrow().is_empty());
        assert_eq!(scene.errors.get(), 0);
    });
}

#[test]
fn a_call_to_another_cluster_is_waited_for() {
    run(async {
        let reactions = vec![
            Reaction::Send("HTTP/1.1 201 X\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 4\r\n\r\ntold".to_owned()),
            Reaction::Echo,
        ];
        let own = lua(r#"function envoy_on_request(h)
                 local call = {[":method"] = "POST", [":path"] = "/auth", [":authority"] = "auth", ["x-m"] = {"1", "2"}}
                 local headers, body = h:httpCall("other", call, "question", {timeout_ms = 5000, return_duplicate_headers = true})
                 h:headers():add("x-told", headers[":status"] .. body .. headers["x-a"][2])
                 local headers = h:httpCall("nobody", call, "", 100)
               end"#);
        let scene = Scene::with(reactions, own, |_| {}).await;
        assert_eq!(scene.get().await.status(), 200);
        let requests = scene.server.seen(2).await;
        assert!(requests[0].starts_with("POST /auth HTTP/1.1\r\nhost: auth\r\n"), "{}", requests[0]);
        assert!(
            requests[0].ends_with("question") && requests[0].contains("x-m: 1\r\nx-m: 2\r\n"),
            "{}",
            requests[0]
        );
        assert!(requests[1].contains("x-told: 201told2\r\n"), "{}", requests[1]);
        // An unknown cluster fails the script, not the request.
        assert_eq!(scene.errors.get(), 1);
    });
}

#[test]
fn a_script_that_fails_leaves_its_request_as_it_is() {
    run(async {
        let scene =
            Scene::new(r#"function envoy_on_request(h) h:headers():add("x-a", "b"); error("oops") end"#)
                .await;
        assert_eq!(scene.get().await.status(), 200);
        assert!(scene.server.seen(1).await[0].contains("x-a: b\r\n"));
        assert_eq!(scene.errors.get(), 1);
    });
}

#[test]
fn a_script_that_never_ends_is_ended() {
    run(async {
        for endless in ["while true do end", "while true do pcall(function() while true do end end) end"] {
            let scene = Scene::new(&format!("function envoy_on_request(h) {endless} end")).await;
            assert_eq!(scene.get().await.status(), 200, "{endless}");
            assert_eq!(scene.errors.get(), 1, "{endless}");
        }
        let greedy = "function envoy_on_request(h) local s = string.rep('x', 1000000); local t = {}; for i = 1, 1000 do t[i] = s .. i end end";
        let scene = Scene::new(greedy).await;
        assert_eq!(scene.get().await.status(), 200);
        assert_eq!(scene.errors.get(), 1);
    });
}

#[test]
fn a_script_reaches_nothing_beyond_its_machine() {
    run(async {
        let scene = Scene::new(
            r#"function envoy_on_request(h)
                 local found = ""
                 for _, name in ipairs({"io", "ffi", "debug", "package", "require", "dofile", "loadfile", "load", "jit"}) do
                   if _G[name] ~= nil then found = found .. name .. " " end
                 end
                 for _, name in ipairs({"execute", "exit", "getenv", "remove", "rename"}) do
                   if os[name] ~= nil then found = found .. "os." .. name .. " " end
                 end
                 if string.dump then found = found .. "dump" end
                 h:headers():add("x-found", found == "" and "nothing" or found)
                 h:headers():add("x-bit", bit.band(12, 10))
                 h:headers():add("x-loaded", loadstring("return 1 + 1")())
               end"#,
        )
        .await;
        scene.get().await;
        let request = scene.server.seen(1).await.remove(0);
        assert!(request.contains("x-found: nothing\r\n"), "{request}");
        assert!(request.contains("x-bit: 8\r\n") && request.contains("x-loaded: 2\r\n"), "{request}");
    });
}

#[test]
fn a_route_chooses_the_script_and_tells_it_things() {
    run(async {
        let source = |name: &str| {
            script(&format!(
                r#"function envoy_on_request(h)
                     h:headers():add("x-script", "{name}")
                     local context = h:filterContext()
                     h:headers():add("x-context", tostring(context["key"]))
                     local metadata = h:metadata():get("m")
                     h:headers():add("x-metadata", metadata and metadata.deep[1] or "none")
                   end"#
            ))
        };
        let mut own = lua("");
        own.default = Some(source("default"));
        own.named = [(Str::from("named"), source("named"))].into();
        let scene = Scene::with(vec![Reaction::Echo], own, |config| {
            let of = |prefix: &str, choice: LuaChoice, context: Option<&str>| {
                let mut route = route(prefix, to(forward_to("up")));
                let context = context.map(|text| {
                    let field: (Str, MetadataValue) = ("key".into(), MetadataValue::Text(text.into()));
                    [field].into()
                });
                let name = config.http_filters[0].name.clone();
                route.filters = vec![(name, Override::Lua(Arc::new(LuaOfRoute { choice, context })))];
                let list = MetadataValue::List([MetadataValue::Text("found".into())].into());
                let deep = MetadataValue::Struct([("deep".into(), list)].into());
                route.metadata = [("envoy.filters.http.lua".into(), [("m".into(), deep)].into())].into();
                route
            };
            config.routes = routes(vec![
                of("/off", LuaChoice::None, None),
                of("/named", LuaChoice::Named("named".into()), Some("value")),
                of("/unknown", LuaChoice::Named("unknown".into()), None),
                of("/own", LuaChoice::Own(source("own")), None),
                route("/", to(forward_to("up"))),
            ]);
        })
        .await;
        for path in ["/off", "/named", "/unknown", "/own", "/"] {
            scene.proxy.get(path).await;
        }
        let requests = scene.server.seen(5).await;
        let told = |at: usize, name: &str| {
            let line = requests[at].lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or("-").to_owned()
        };
        let scripts: Vec<String> = (0..5).map(|at| told(at, "x-script")).collect();
        assert_eq!(scripts, ["-", "named", "-", "own", "default"]);
        assert_eq!((told(1, "x-context"), told(3, "x-context")), ("value".to_owned(), "nil".to_owned()));
        assert_eq!((told(1, "x-metadata"), told(4, "x-metadata")), ("found".to_owned(), "none".to_owned()));
    });
}

#[test]
fn a_changed_request_finds_its_route_anew() {
    run(async {
        let scene = Scene::with(
            vec![Reaction::Echo],
            lua(r#"function envoy_on_request(h) h:headers():replace(":path", "/moved") end"#),
            |config| {
                let mut moved = route("/moved", to(forward_to("up")));
                moved.headers.request_add = vec![add("x-route", "moved")];
                let direct = DirectResponse { status: 418, body: Default::default(), body_format: None };
                config.routes = routes(vec![moved, route("/", Action::Direct(direct))]);
            },
        )
        .await;
        assert_eq!(scene.get().await.status(), 200);
        assert!(scene.server.seen(1).await[0].contains("x-route: moved\r\n"));
    });
}

#[test]
fn facts_of_the_stream_are_told_and_metadata_is_kept() {
    run(async {
        let scene = Scene::new(
            r#"function envoy_on_request(h)
                 local info = h:streamInfo()
                 info:dynamicMetadata():set("ns", "key", {a = "b", n = 1})
                 h:headers():add("x-protocol", info:protocol())
                 h:headers():add("x-remote", info:downstreamDirectRemoteAddress())
                 h:headers():add("x-local", info:downstreamLocalAddress())
                 h:headers():add("x-ssl", tostring(h:connection():ssl()) .. tostring(info:downstreamSslConnection()))
                 h:headers():add("x-base64", h:base64Escape("a\0b"))
                 h:headers():add("x-time", tostring(h:timestamp() > 1e12) .. #h:timestampString(EnvoyTimestampResolution.MICROSECOND))
                 h:logInfo("seen")
               end
               function envoy_on_response(h)
                 h:headers():add("x-kept", h:streamInfo():dynamicMetadata():get("ns").key.a)
               end"#,
        )
        .await;
        let answer = scene.get().await;
        assert_eq!(answer.header("x-kept"), Some("b"), "{}", answer.head);
        let request = scene.server.seen(1).await.remove(0);
        for line in [
            "x-protocol: HTTP/1.1",
            "x-remote: 192.0.2.9:4000",
            "x-local: 192.0.2.2:80",
            "x-ssl: nilnil",
            "x-base64: YQBi",
            "x-time: true16",
        ] {
            assert!(request.contains(&format!("\r\n{line}\r\n")), "{line} in {request}");
        }
        assert_eq!(scene.errors.get(), 0);
    });
}

#[test]
fn a_handle_that_is_kept_changes_nothing_later() {
    run(async {
        let scene = Scene::new(
            r#"local kept
               function envoy_on_request(h)
                 if kept then kept:add("x-late", "1") end
                 kept = h:headers()
               end"#,
        )
        .await;
        scene.get().await;
        assert_eq!(scene.errors.get(), 0);
        assert_eq!(scene.get().await.status(), 200);
        assert_eq!(scene.errors.get(), 1);
    });
}
