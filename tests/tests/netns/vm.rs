//! The shortest checks, which `cargo xtask vm` runs in other kernels, where emulation makes everything slow.

use anyhow::Result;
use mesh_tests::need_root;
use mesh_tests::netns::Node;
use mesh_tests::peer::{Place, Server};

#[test]
fn a_connection_goes_through_between_pods_of_the_stage() -> Result<()> {
    need_root!();
    let node = Node::new("node", 1)?;
    let (client, server) = (node.pod("client")?, node.pod("server")?);
    let _server = server.serve("server", Server::First, &["[::]:8081".parse()?])?;
    let first = mesh_tests::peer::CallOptions { server_first: true, ..Default::default() };
    assert_eq!(client.call_with((server.v4(), 8081).into(), &first)?.ok()?.name, "server");
    Ok(())
}
