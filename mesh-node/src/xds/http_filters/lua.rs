//! `envoy.filters.http.lua`: scripts are read and parsed here, and run nowhere but in the data path.

use std::sync::Arc;

use mesh_xds::pb::envoy::config::core::v3::DataSource;
use mesh_xds::pb::envoy::extensions::filters::http::lua::v3::lua_per_route::Override as OfRoute;
use mesh_xds::pb::envoy::extensions::filters::http::lua::v3::{Lua as Proto, LuaPerRoute};
use mesh_xds::pb::google::protobuf::Struct;
use mlua::{ChunkMode, Lua, LuaOptions, StdLib};

use super::super::common::{boolean, text};
use super::super::error::{At, XdsError};
use super::super::metadata::fields;
use super::Place;
use crate::model::lua::{LuaChoice, LuaContext, LuaFilter, LuaOfRoute, Script};

pub(super) fn convert(at: At<'_>, proto: &Proto, place: &Place<'_, '_>) -> Result<LuaFilter, XdsError> {
    let at_default = at.field("default_source_code");
    let default = match (&proto.default_source_code, proto.inline_code.as_str()) {
        (Some(_), inline) if !inline.is_empty() => {
            return Err(at_default.invalid("cannot be given beside inline_code; keep one"));
        }
        (Some(source), _) => Some(script(at_default, source)?),
        (None, "") => None,
        (None, inline) => Some(parsed(at.field("inline_code"), inline.to_owned())?),
    };
    let at_named = at.field("source_codes");
    let named = proto.source_codes.iter();
    let prefix = match proto.stat_prefix.as_str() {
        "" => String::new(),
        prefix => format!("{prefix}."),
    };
    Ok(LuaFilter {
        default,
        named: named
            .map(|(name, source)| Ok((name.as_str().into(), script(at_named.field(name), source)?)))
            .collect::<Result<_, XdsError>>()?,
        clear_route_cache: boolean(proto.clear_route_cache, true),
        context: context(proto.filter_context.as_ref()).unwrap_or_default(),
        errors: place.counter(&format!("lua.{prefix}errors")),
        executions: place.counter(&format!("lua.{prefix}executions")),
    })
}

pub(super) fn of_route(at: At<'_>, proto: &LuaPerRoute) -> Result<LuaOfRoute, XdsError> {
    Ok(LuaOfRoute {
        choice: match &proto.r#override {
            Some(OfRoute::Disabled(true)) => LuaChoice::None,
            Some(OfRoute::Disabled(false)) | None => LuaChoice::Default,
            Some(OfRoute::Name(name)) => LuaChoice::Named(name.as_str().into()),
            Some(OfRoute::SourceCode(source)) => LuaChoice::Own(script(at.field("source_code"), source)?),
        },
        context: context(proto.filter_context.as_ref()),
    })
}

fn context(proto: Option<&Struct>) -> Option<LuaContext> {
    proto.map(fields)
}

fn script(at: At<'_>, source: &DataSource) -> Result<Arc<Script>, XdsError> {
    parsed(at, text(at, source)?)
}

fn parsed(at: At<'_>, source: String) -> Result<Arc<Script>, XdsError> {
    let lua =
        Lua::new_with(StdLib::NONE, LuaOptions::default()).map_err(|error| at.invalid(error.to_string()))?;
    let chunk = lua.load(source.as_str()).set_mode(ChunkMode::Text).set_name("=script");
    chunk.into_function().map_err(|error| at.invalid(format!("script load error: {error}")))?;
    Ok(Arc::new(Script { source }))
}
