//! What the mesh promises about connections, checked on the running kernel in network namespaces.

mod accel;
mod guard;
mod hand_off;
mod kinds;
mod leaving;
mod lifecycle;
mod limits;
mod plain;
mod ports;
mod services;
mod stage;
mod steering;
mod vm;
