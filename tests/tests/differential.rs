//! `cargo test -p mesh-tests --test differential [-- NAME]`: Envoy and `mesh-node` side by side.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Flags of the test harness (`--nocapture`) are not ours.
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("differential: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(mesh_tests::differential::run(filter.as_deref())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("differential: {error:#}");
            ExitCode::FAILURE
        }
    }
}
