//! What the mesh promises about connections, checked on real kernels in network namespaces.

mod plain;
mod vm;
