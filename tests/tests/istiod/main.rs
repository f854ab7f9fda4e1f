//! `cargo xtask conformance`: mesh-node under a real istiod, beside an Envoy under the same one.
//!
//! The programs of istiod and Kubernetes are built and named by `cargo xtask conformance`; without them every test
//! says so and passes.

mod backend;
mod call;
mod control;
mod istioctl;
mod kube;
mod policies;
mod refusal;
mod rules;
mod stage;

use std::time::Duration;

use anyhow::Result;
use mesh_tests::load::Load;
use mesh_tests::need_root;
use mesh_tests::xds::Form;
use stage::{REVIEWS, Registry, Side, Stage};

/// Requests of so many connections are under way all the time.
const CONNECTIONS: usize = 64;

fn long() -> bool {
    std::env::var_os("MESH_LONG").is_some()
}

#[test]
fn rules_of_files_do_the_same_through_envoy_and_mesh_node() -> Result<()> {
    need_root!();
    let Some(stage) = Stage::with_both(Registry::Files, Form::Delta)? else { return Ok(()) };
    rules::all_hold(&stage)
}

#[test]
fn rules_by_state_of_the_world_do_the_same_through_envoy_and_mesh_node() -> Result<()> {
    need_root!();
    let Some(stage) = Stage::with_both(Registry::Files, Form::StateOfTheWorld)? else { return Ok(()) };
    rules::all_hold(&stage)
}

#[test]
fn istioctl_shows_of_mesh_node_what_it_shows_of_envoy() -> Result<()> {
    need_root!();
    let Some(stage) = Stage::with_both(Registry::Files, Form::Delta)? else { return Ok(()) };
    istioctl::shows_the_same(&stage)
}

#[test]
fn rules_of_an_api_server_do_the_same_through_envoy_and_mesh_node() -> Result<()> {
    need_root!();
    let Some(stage) = Stage::with_both(Registry::Kubernetes, Form::Delta)? else { return Ok(()) };
    rules::all_hold(&stage)
}

#[test]
fn everything_that_a_stock_istiod_sends_is_taken_and_does_what_it_should() -> Result<()> {
    need_root!();
    let Some(stage) = Stage::with_mesh(Registry::Files)? else { return Ok(()) };
    rules::all_hold(&stage)?;
    policies::all_hold(&stage)?;
    refusal::is_shown_and_holds_nothing_else_up(&stage)
}

#[test]
fn pushes_and_restarts_of_istiod_fail_no_request() -> Result<()> {
    need_root!();
    let Some(stage) = Stage::with_mesh(Registry::Files)? else { return Ok(()) };
    none_fails(stage, if long() { 1000 } else { 40 })
}

#[test]
fn pushes_and_restarts_beside_an_api_server_fail_no_request() -> Result<()> {
    need_root!();
    let Some(stage) = Stage::with_mesh(Registry::Kubernetes)? else { return Ok(()) };
    none_fails(stage, 20)
}

/// Clients send while istiod pushes, and is killed and started again twice.
fn none_fails(mut stage: Stage, rounds: u32) -> Result<()> {
    stage.rules("rule", &rules::split(50))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = stage.client(Side::Mesh).clone();
    let load = client.netns().run(|| Load::start(CONNECTIONS, REVIEWS, "reviews:9080"))?;
    for round in 0..rounds {
        stage.rules("rule", &rules::split(round % 101))?;
        if round % (rounds / 2) == rounds / 4 {
            stage.istiod.kill();
            if long() {
                // As long as a control plane may be gone in an upgrade.
                std::thread::sleep(Duration::from_secs(60));
            }
            runtime.block_on(load.more(1000));
            stage.istiod.start()?;
        }
    }
    let outcome = runtime.block_on(load.end());
    eprintln!("{rounds} pushes and 2 restarts, {} requests", outcome.answered());
    outcome.none_failed();
    stage.istiod.nothing_was_refused()
}
