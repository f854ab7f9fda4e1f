//! The machines that scripts run in: one for each script of a worker, made when a request first needs it.
//!
//! A script comes from whoever configures a pod, and runs in the process of the node: it gets no files, no processes,
//! no foreign functions and no bytecode, and a bounded share of time and memory. Just-in-time compilation is off,
//! because compiled loops cannot be interrupted.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use mlua::{ChunkMode, Function, HookTriggers, Lua, LuaOptions, StdLib, VmState};

use crate::model::lua::Script;

/// Instructions between looks at what is left.
const STEP: u32 = 10_000;
/// Steps of one run between two waits: about a tenth of a second.
const STEPS: u32 = 2_000;
const MEMORY_BYTES: usize = 64 << 20;
/// What reaches beyond the machine.
const REMOVED: [&str; 10] = [
    "dofile",
    "loadfile",
    "load",
    "loadstring",
    "require",
    "module",
    "package",
    "collectgarbage",
    "newproxy",
    "jit",
];

/// An error because of too long a run is not a script's to catch.
const PRELUDE: &str = r#"
local expired, error = ..., error
local function guarded(f)
  local function check(ok, ...)
    if not ok and expired() then error("the script runs for too long", 0) end
    return ok, ...
  end
  return function(...) return check(f(...)) end
end
pcall, xpcall, coroutine.resume = guarded(pcall), guarded(xpcall), guarded(coroutine.resume)
"#;

/// The machines of one worker.
#[derive(Debug, Default)]
pub struct Machines(RefCell<HashMap<usize, Kept, ahash::RandomState>>);

#[derive(Debug)]
struct Kept {
    script: Weak<Script>,
    /// `None`: the script failed when it was loaded.
    machine: Option<Rc<Machine>>,
}

/// A loaded script.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) lua: Lua,
    pub(super) on_request: Option<Function>,
    pub(super) on_response: Option<Function>,
    steps: Rc<Cell<u32>>,
}

impl Machines {
    /// The machine of a script; `None` if it cannot be loaded, which is told once.
    pub(super) fn of(&self, script: &Arc<Script>) -> Option<Rc<Machine>> {
        let key = Arc::as_ptr(script) as usize;
        let mut kept = self.0.borrow_mut();
        if let Some(kept) = kept.get(&key).filter(|kept| kept.script.strong_count() > 0) {
            return kept.machine.clone();
        }
        // Scripts of earlier configurations.
        kept.retain(|_, kept| kept.script.strong_count() > 0);
        let machine = match Machine::load(script) {
            Ok(machine) => Some(Rc::new(machine)),
            Err(error) => {
                tracing::error!(%error, "a Lua script cannot be loaded; requests pass without it");
                None
            }
        };
        kept.insert(key, Kept { script: Arc::downgrade(script), machine: machine.clone() });
        machine
    }
}

impl Machine {
    fn load(script: &Script) -> mlua::Result<Self> {
        let libraries =
            StdLib::TABLE | StdLib::STRING | StdLib::MATH | StdLib::BIT | StdLib::OS | StdLib::JIT;
        let lua = Lua::new_with(libraries, LuaOptions::default())?;
        lua.load("jit.off()").exec()?;
        let globals = lua.globals();
        for name in REMOVED {
            globals.raw_remove(name)?;
        }
        let os: mlua::Table = globals.get("os")?;
        for name in ["execute", "exit", "getenv", "remove", "rename", "setlocale", "tmpname"] {
            os.raw_remove(name)?;
        }
        let string: mlua::Table = globals.get("string")?;
        string.raw_remove("dump")?;
        let load = |lua: &Lua, (text, name): (mlua::String, Option<String>)| {
            let chunk = lua.load(text.as_bytes().to_vec()).set_mode(ChunkMode::Text);
            chunk.set_name(name.unwrap_or_else(|| "=chunk".to_owned())).into_function()
        };
        globals.set("loadstring", lua.create_function(load)?)?;
        globals.set(
            "print",
            lua.create_function(|_, text: mlua::Variadic<mlua::Value>| {
                let text: Vec<_> = text.iter().map(|value| value.to_string().unwrap_or_default()).collect();
                tracing::info!(target: "lua", "{}", text.join("\t"));
                Ok(())
            })?,
        )?;
        let resolution = lua.create_table()?;
        resolution.set("MILLISECOND", 0)?;
        resolution.set("MICROSECOND", 1)?;
        globals.set("EnvoyTimestampResolution", resolution)?;
        let steps = Rc::new(Cell::new(STEPS));
        let (left, spent) = (steps.clone(), steps.clone());
        let expired = lua.create_function(move |_, ()| Ok(spent.get() == 0))?;
        lua.load(PRELUDE).set_name("=prelude").call::<()>(expired)?;
        lua.set_global_hook(HookTriggers::new().every_nth_instruction(STEP), move |_, _| {
            match left.get().checked_sub(1) {
                Some(rest) => {
                    left.set(rest);
                    Ok(VmState::Continue)
                }
                None => Err(mlua::Error::runtime("the script runs for too long")),
            }
        })?;
        lua.set_memory_limit(MEMORY_BYTES)?;
        lua.load(script.source.as_str()).set_mode(ChunkMode::Text).set_name("=script").exec()?;
        let globals = lua.globals();
        Ok(Self {
            on_request: globals.get("envoy_on_request")?,
            on_response: globals.get("envoy_on_response")?,
            steps,
            lua,
        })
    }

    /// A run may take its share of time again.
    pub(super) fn refill(&self) {
        self.steps.set(STEPS);
    }
}
