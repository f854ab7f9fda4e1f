//! Nodes and pods in network namespaces.
