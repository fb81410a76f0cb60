"""The pure core: tables written from the specification, and properties that hold for any facts."""
