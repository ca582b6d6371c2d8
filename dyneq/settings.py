"""Settings that can be switched off: TOML and the command line have no null, so the word ``none`` stands for it."""

from typing import Any

from pydantic import BaseModel, SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

NONE = "none"


class Settings(BaseModel):
    """A model in which ``none`` means None, wherever a setting may be None.

    Dumped with ``exclude_none``, a setting that is None and not so by default is written as that word: left out, it
    would come back as its default.
    """

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            k: None if isinstance(v, str) and v.lower() == NONE and cls._may_be_none(k) else v
            for k, v in values.items()
        }

    @classmethod
    def _may_be_none(cls, name: object) -> bool:
        field = cls.model_fields.get(str(name))
        return field is not None and type(None) in getattr(field.annotation, "__args__", ())

    @model_serializer(mode="wrap")
    def _write_none(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        if info.exclude_none:
            for name, field in type(self).model_fields.items():
                if getattr(self, name) is None and field.default is not None:
                    written[name] = NONE
        return written
