"""The hand codec and google.protobuf must agree on every table, in both directions."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import any_pb2, descriptor, empty_pb2, timestamp_pb2
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos import sandbox_messages, shim_messages, ttrpc
from protos.containerd import (
    bootstrap_pb2,
    event_types_pb2,
    rpc_status_pb2,
    runc_options_pb2,
    shim_events_pb2,
    shim_sandbox_pb2,
    shim_v2_pb2,
    shim_v3_pb2,
    types_pb2,
)
from protos.wire import Field, Message, WireError

MODULES = (
    any_pb2, bootstrap_pb2, empty_pb2, event_types_pb2, rpc_status_pb2, runc_options_pb2,
    shim_events_pb2, shim_sandbox_pb2, shim_v2_pb2, shim_v3_pb2, timestamp_pb2, types_pb2,
)  # fmt: skip

TABLES: dict[str, Message] = {
    table.name: table
    for table in [
        *vars(shim_messages).values(),
        *vars(sandbox_messages).values(),
        *(table for method in sandbox_messages.SANDBOX_METHODS.values() for table in method),
        ttrpc.STATUS,
    ]
    if isinstance(table, Message)
}

_F = descriptor.FieldDescriptor
_TYPES = {
    _F.TYPE_STRING: "string", _F.TYPE_BYTES: "bytes", _F.TYPE_BOOL: "bool", _F.TYPE_UINT32: "uint32",
    _F.TYPE_UINT64: "uint64", _F.TYPE_INT32: "int32", _F.TYPE_INT64: "int64", _F.TYPE_ENUM: "enum",
    _F.TYPE_DOUBLE: "double",
}  # fmt: skip
_SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(max_size=40),
    "bytes": st.binary(max_size=200),
    "bool": st.booleans(),
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "enum": st.integers(0, 5),
}


def protobuf_class(name: str) -> type[ProtobufMessage]:
    return GetMessageClass(Default().FindMessageTypeByName(name))


def values_of(table: Message) -> st.SearchStrategy[dict[str, Any]]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in table.fields:
        fields[field.name] = field_values(field)
    return st.fixed_dictionaries(fields)


def field_values(field: Field) -> st.SearchStrategy[Any]:
    if isinstance(field.kind, Message):
        one = values_of(field.kind)
        if field.is_map:
            value = next(f for f in field.kind.fields if f.name == "value")
            return st.dictionaries(st.text(max_size=9), field_values(value), max_size=3)
        return st.lists(one, max_size=3) if field.repeated else st.none() | one
    scalar = _SCALARS[field.kind]
    return st.lists(scalar, max_size=4) if field.repeated else scalar


def fill(message: Any, table: Message, values: dict[str, Any]) -> None:
    """Give a google.protobuf message the values of ours."""
    for field in table.fields:
        value = values[field.name]
        if field.is_map:
            getattr(message, field.name).update(value)
        elif isinstance(field.kind, Message):
            for item in value if field.repeated else [value] * (value is not None):
                target = getattr(message, field.name)
                sub = target.add() if field.repeated else target
                sub.SetInParent()
                fill(sub, field.kind, item)
        elif field.repeated:
            getattr(message, field.name).extend(value)
        elif value:
            setattr(message, field.name, value)


def check_table(table: Message, described: Any, seen: set[str]) -> None:
    if table.name in seen:
        return
    seen.add(table.name)
    by_number = {field.number: field for field in described.fields}
    for field in table.fields:
        theirs = by_number[field.number]
        assert theirs.name == field.name, table.name
        assert theirs.is_repeated == field.repeated, f"{table.name}.{field.name}"
        if isinstance(field.kind, Message):
            check_table(field.kind, theirs.message_type, seen)
        else:
            assert _TYPES[theirs.type] == field.kind, f"{table.name}.{field.name}"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_table_equals_the_proto(name: str) -> None:
    check_table(TABLES[name], protobuf_class(name).DESCRIPTOR, set())


@pytest.mark.parametrize("name", sorted(shim_messages.TASK_METHODS))
def test_methods_are_those_of_both_services(name: str) -> None:
    method = shim_messages.TASK_METHODS[name]
    for module, package in ((shim_v2_pb2, "containerd.task.v2"), (shim_v3_pb2, "containerd.task.v3")):
        theirs = module.DESCRIPTOR.services_by_name["Task"].methods_by_name[name]
        assert theirs.input_type.full_name == method.request.name.replace("containerd.task.v2", package)
        assert theirs.output_type.full_name == method.response.name.replace("containerd.task.v2", package)
        check_table(method.request, theirs.input_type, set())
        check_table(method.response, theirs.output_type, set())


def test_no_method_is_missing() -> None:
    assert set(shim_messages.TASK_METHODS) == set(shim_v2_pb2.DESCRIPTOR.services_by_name["Task"].methods_by_name)


@pytest.mark.parametrize("name", sorted(TABLES))
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_codecs_agree(name: str, data: st.DataObject) -> None:
    table = TABLES[name]
    values = data.draw(values_of(table))
    theirs = protobuf_class(name)()
    fill(theirs, table, values)
    assert protobuf_class(name).FromString(table.encode(values)) == theirs
    assert table.decode(theirs.SerializeToString()) == table.decode(table.encode(values)) == values


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_hostile_bytes_raise_only_wire_errors(data: bytes) -> None:
    for table in (shim_messages.CREATE_REQUEST, shim_messages.UPDATE_REQUEST, ttrpc.REQUEST_MESSAGE):
        try:
            table.decode(data)
        except WireError:
            continue


def test_unknown_fields_are_skipped() -> None:
    wide = shim_messages.CREATE_REQUEST.encode({"id": "c", "bundle": "/b", "terminal": True})
    assert shim_messages.START_RESPONSE.decode(wide)["pid"] == 0


def test_a_misspelt_name_is_an_error() -> None:
    with pytest.raises(WireError, match=r"StartRequest has no field execid"):
        shim_messages.START_REQUEST.encode({"id": "a", "execid": "b"})


def test_a_value_out_of_range_is_an_error() -> None:
    with pytest.raises(WireError, match="does not fit"):
        shim_messages.START_RESPONSE.encode({"pid": 2**32})


def test_packed_and_unpacked_repeated_scalars_decode() -> None:
    table = Message("t", Field(4, "n", "uint64", repeated=True))
    assert table.decode(bytes([0x22, 3, 1, 0xAC, 2]))["n"] == [1, 300]
    assert table.decode(bytes([0x20, 1, 0x20, 0xAC, 2]))["n"] == [1, 300]
    assert table.encode({"n": [1, 300]}) == bytes([0x22, 3, 1, 0xAC, 2])
