"""What every record is."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A document of the store. Fields this version does not know are ignored, so that versions can be mixed."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    def document(self) -> dict[str, Any]:
        """This record as a MongoDB document."""
        return self.model_dump(by_alias=True)
