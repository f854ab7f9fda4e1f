//! What scripts get of a message besides its handle: headers, buffers, metadata. Values that a script keeps after its
//! message has gone on can be read, and no longer changed.

use bytes::Bytes;
use http::HeaderMap;
use mlua::{Lua, MetaMethod, Table, UserData, UserDataMethods, Value};
use serde_json::Map;

use super::exchange::{Buffer, Exchange, Fields, Headers, name_of, pseudo_name, value_of};
use crate::model::metadata::Metadata;

/// A header object.
pub(super) struct HeadersObject(pub(super) Headers);

/// A buffer object.
pub(super) struct BufferObject(pub(super) Buffer);

/// A metadata object.
pub(super) struct MetadataObject(pub(super) Map<String, serde_json::Value>);

impl HeadersObject {
    fn change(&self, change: impl FnOnce(&mut Fields) -> mlua::Result<()>) -> mlua::Result<()> {
        let mut fields = self.0.borrow_mut();
        if fields.sent {
            return Err(mlua::Error::runtime("header map can no longer be modified"));
        }
        fields.changed = true;
        change(&mut fields)
    }
}

impl Fields {
    /// All values of a name.
    fn values(&self, key: &str) -> Vec<Vec<u8>> {
        let key = key.to_ascii_lowercase();
        if let Some(name) = pseudo_name(&key) {
            let of = |(known, value): &(&'static str, String)| {
                (*known == name).then(|| value.clone().into_bytes())
            };
            return self.pseudo.iter().find_map(of).into_iter().collect();
        }
        self.map.get_all(&key).iter().map(|value| value.as_bytes().to_vec()).collect()
    }

    fn set_pseudo(&mut self, name: &'static str, value: &[u8]) {
        if let Some((_, known)) = self.pseudo.iter_mut().find(|(known, _)| *known == name) {
            *known = String::from_utf8_lossy(value).into_owned();
        }
    }

    /// Names and values in order.
    fn all(&self) -> Vec<(String, Vec<u8>)> {
        let pseudo = self.pseudo.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into_bytes()));
        let rest = self.map.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
        pseudo.chain(rest).collect()
    }
}

impl UserData for HeadersObject {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("get", |lua, this, key: String| {
            let values = this.0.borrow().values(&key);
            if values.is_empty() { Ok(None) } else { lua.create_string(values.join(&b","[..])).map(Some) }
        });
        methods.add_method("getAtIndex", |lua, this, (key, index): (String, usize)| {
            let values = this.0.borrow().values(&key);
            values.get(index).map(|value| lua.create_string(value)).transpose()
        });
        methods.add_method("getNumValues", |_, this, key: String| Ok(this.0.borrow().values(&key).len()));
        methods.add_method("add", |_, this, (key, value): (String, mlua::String)| {
            this.change(|fields| {
                let key = key.to_ascii_lowercase();
                match pseudo_name(&key) {
                    Some(name) => fields.set_pseudo(name, &value.as_bytes()),
                    None => drop(fields.map.append(name_of(&key)?, value_of(&value.as_bytes())?)),
                }
                Ok(())
            })
        });
        methods.add_method("replace", |_, this, (key, value): (String, mlua::String)| {
            this.change(|fields| {
                let key = key.to_ascii_lowercase();
                match pseudo_name(&key) {
                    Some(name) => fields.set_pseudo(name, &value.as_bytes()),
                    None => drop(fields.map.insert(name_of(&key)?, value_of(&value.as_bytes())?)),
                }
                Ok(())
            })
        });
        methods.add_method("remove", |_, this, key: String| {
            this.change(|fields| {
                fields.map.remove(key.to_ascii_lowercase());
                Ok(())
            })
        });
        methods.add_method("setHttp1ReasonPhrase", |_, _, _: mlua::String| -> mlua::Result<()> {
            Err(mlua::Error::runtime("setHttp1ReasonPhrase is not supported"))
        });
        methods.add_meta_method(MetaMethod::Pairs, |lua, this, ()| {
            let mut all = this.0.borrow().all().into_iter();
            let next = lua.create_function_mut(move |lua, _: mlua::Variadic<Value>| match all.next() {
                Some((name, value)) => Ok((Some(name), Some(lua.create_string(value)?))),
                None => Ok((None, None)),
            })?;
            Ok((next, Value::Nil, Value::Nil))
        });
    }
}

impl UserData for BufferObject {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("length", |_, this, ()| Ok(this.0.borrow().len()));
        methods.add_method("getBytes", |lua, this, (index, length): (usize, usize)| {
            let bytes = this.0.borrow();
            let piece = index.checked_add(length).and_then(|end| bytes.get(index..end));
            let piece = piece.ok_or_else(|| {
                mlua::Error::runtime("index/length must be >= 0 and (index + length) must be <= buffer size")
            })?;
            lua.create_string(piece)
        });
        methods.add_method("setBytes", |_, this, bytes: mlua::String| {
            *this.0.borrow_mut() = Bytes::copy_from_slice(&bytes.as_bytes());
            Ok(this.0.borrow().len())
        });
    }
}

impl UserData for MetadataObject {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("get", |lua, this, key: String| match this.0.get(&key) {
            Some(value) => to_lua(lua, value),
            None => Ok(Value::Nil),
        });
        // Envoy's reference indexes contexts; its metadata has only `get`.
        methods.add_meta_method(MetaMethod::Index, |lua, this, key: String| match this.0.get(&key) {
            Some(value) => to_lua(lua, value),
            None => Ok(Value::Nil),
        });
        methods.add_meta_method(MetaMethod::Pairs, |lua, this, ()| pairs_of(lua, &this.0));
    }
}

/// The iteration that `pairs` wants of a map.
pub(super) fn pairs_of(
    lua: &Lua,
    map: &Map<String, serde_json::Value>,
) -> mlua::Result<(mlua::Function, Value, Value)> {
    let mut all = map.clone().into_iter();
    let next = lua.create_function_mut(move |lua, _: mlua::Variadic<Value>| match all.next() {
        Some((name, value)) => Ok((Value::String(lua.create_string(name)?), to_lua(lua, &value)?)),
        None => Ok((Value::Nil, Value::Nil)),
    })?;
    Ok((next, Value::Nil, Value::Nil))
}

/// Metadata of the configuration, as scripts get it.
pub(super) fn json_of(fields: &Metadata) -> Map<String, serde_json::Value> {
    fields.iter().map(|(key, value)| (key.to_string(), value.to_json())).collect()
}

/// A value of metadata in Lua: lists begin at 1.
pub(super) fn to_lua(lua: &Lua, value: &serde_json::Value) -> mlua::Result<Value> {
    Ok(match value {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(on) => Value::Boolean(*on),
        serde_json::Value::Number(number) => Value::Number(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Value::String(lua.create_string(text)?),
        serde_json::Value::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for (at, item) in items.iter().enumerate() {
                table.raw_set(at + 1, to_lua(lua, item)?)?;
            }
            Value::Table(table)
        }
        serde_json::Value::Object(fields) => Value::Table(table_of(lua, fields)?),
    })
}

pub(super) fn table_of(lua: &Lua, fields: &Map<String, serde_json::Value>) -> mlua::Result<Table> {
    let table = lua.create_table_with_capacity(0, fields.len())?;
    for (key, value) in fields {
        table.raw_set(key.as_str(), to_lua(lua, value)?)?;
    }
    Ok(table)
}

/// Deeper tables are refused: one may hold itself.
const MAX_DEPTH: u32 = 16;

/// A value of Lua as metadata.
pub(super) fn from_lua(value: &Value, depth: u32) -> mlua::Result<serde_json::Value> {
    if depth > MAX_DEPTH {
        return Err(mlua::Error::runtime("this table is too deep"));
    }
    Ok(match value {
        Value::Nil => serde_json::Value::Null,
        Value::Boolean(on) => (*on).into(),
        Value::Integer(number) => (*number as f64).into(),
        Value::Number(number) => (*number).into(),
        Value::String(text) => text.to_string_lossy().into(),
        Value::Table(table) => {
            let length = table.raw_len();
            if length > 0 {
                let items = (1..=length).map(|at| from_lua(&table.raw_get(at)?, depth + 1));
                serde_json::Value::Array(items.collect::<mlua::Result<_>>()?)
            } else {
                let mut fields = Map::new();
                for pair in table.pairs::<String, Value>() {
                    let (key, value) = pair?;
                    fields.insert(key, from_lua(&value, depth + 1)?);
                }
                serde_json::Value::Object(fields)
            }
        }
        _ => return Err(mlua::Error::runtime("only text, numbers, booleans and tables can be metadata")),
    })
}

/// Header lines of a table: a value is a text or a list of texts. Names that are no headers come apart.
pub(super) fn lines_of(table: &Table) -> mlua::Result<(Vec<(String, String)>, HeaderMap)> {
    let (mut pseudo, mut map) = (Vec::new(), HeaderMap::new());
    for pair in table.pairs::<String, Value>() {
        let (key, value) = pair?;
        let values: Vec<mlua::String> = match value {
            Value::Table(list) => list.sequence_values().collect::<mlua::Result<_>>()?,
            Value::String(text) => vec![text],
            Value::Integer(_) | Value::Number(_) | Value::Boolean(_) => {
                let text = value.to_string()?;
                if key.starts_with(':') {
                    pseudo.push((key, text));
                } else {
                    map.append(name_of(&key)?, value_of(text.as_bytes())?);
                }
                continue;
            }
            _ => return Err(mlua::Error::runtime("the value of a header is a text or a list of texts")),
        };
        for value in values {
            if key.starts_with(':') {
                pseudo.push((key.clone(), value.to_string_lossy()));
            } else {
                map.append(name_of(&key.to_ascii_lowercase())?, value_of(&value.as_bytes())?);
            }
        }
    }
    Ok((pseudo, map))
}

impl Exchange {
    /// Whether the script has changed the head of the message.
    pub(super) fn changed(&self) -> bool {
        self.headers.borrow().changed
    }
}
