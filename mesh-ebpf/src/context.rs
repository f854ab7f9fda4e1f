//! Reads fields of the kernel's contexts.
//!
//! The verifier takes a field only by an access at its own constant offset. A plain read may be
//! merged by the compiler with another one behind a computed pointer, so reads here are volatile,
//! and both families' addresses are read before one is chosen.

/// One field, read once and where it stands.
macro_rules! field {
    ($context:expr, $($path:tt)+) => {
        core::ptr::read_volatile(&raw const (*$context).$($path)+)
    };
}

/// The address in a pair of fields, of IPv4 if `$v4`.
macro_rules! address {
    ($context:expr, $v4:expr, $ip4:ident, $ip6:ident) => {{
        let four = $crate::context::field!($context, $ip4);
        let six = [
            $crate::context::field!($context, $ip6[0]),
            $crate::context::field!($context, $ip6[1]),
            $crate::context::field!($context, $ip6[2]),
            $crate::context::field!($context, $ip6[3]),
        ];
        if $v4 { mesh_common::Address::from_v4(four) } else { mesh_common::Address(six) }
    }};
}

pub(crate) use {address, field};
