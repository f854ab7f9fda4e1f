//! The wire between two nodes.

use anyhow::Result;

use super::Node;

/// A veth pair between two nodes, gone with the nodes or when dropped.
pub struct Link {
    a: Node,
    device: String,
}

impl Link {
    /// Joins two nodes of one cluster: each knows the way to the other and to its pods.
    pub fn new(a: &Node, b: &Node) -> Result<Link> {
        Link::join(a, b, true)
    }

    /// Joins a node and a machine outside the cluster, which knows the node but none of its pods: what
    /// pods send there needs masquerading.
    pub fn outside(node: &Node, outside: &Node) -> Result<Link> {
        Link::join(node, outside, false)
    }

    fn join(a: &Node, b: &Node, pods: bool) -> Result<Link> {
        let device = format!("link{}", b.index());
        let peer = format!("link{}", a.index());
        a.netns().ip(&format!("link add {device} type veth peer name {peer} netns {}", b.netns().name()))?;
        for (near, far, device) in [(a, b, &device), (b, a, &peer)] {
            let (v4, v6, far_v4, far_v6) = (near.v4(), near.v6(), far.v4(), far.v6());
            let mut batch = format!(
                "addr add {v4}/32 dev {device}\n\
                 addr add {v6}/128 dev {device} nodad\n\
                 link set {device} up\n\
                 route add {far_v4}/32 dev {device} src {v4}\n\
                 route add {far_v6}/128 dev {device} src {v6}\n"
            );
            if pods {
                batch += &format!(
                    "route add {} via {far_v4} dev {device} onlink\n\
                     route add {} via {far_v6} dev {device} onlink\n",
                    far.pod_cidr_v4(),
                    far.pod_cidr_v6(),
                );
            }
            near.netns().ip(&batch)?;
        }
        Ok(Link { a: a.clone(), device })
    }

    /// The interface on the first node.
    pub fn device(&self) -> &str {
        &self.device
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Both ends go together; the nodes may have gone before.
        self.a.netns().ip(&format!("link del {}", self.device)).ok();
    }
}
