//! What the mesh promises about connections, checked on the running kernel in network namespaces.

mod guard;
mod hand_off;
mod in_memory;
mod kinds;
mod kubernetes;
mod leaving;
mod lifecycle;
mod limits;
mod plain;
mod ports;
mod server_names;
mod services;
mod sidecars;
mod stage;
mod steering;
mod vm;
