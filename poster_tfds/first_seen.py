"""Which keys came before, for more of them than memory should hold."""

import sqlite3


class FirstSeen:
    """Keys and what came with each the first time, in a temporary file of SQLite.

    A few MB of it are in memory, however many keys there are. The file has no name and is
    gone with the process.
    """

    def __init__(self):
        self._database = sqlite3.connect("")
        self._database.execute("CREATE TABLE seen (key PRIMARY KEY, value) WITHOUT ROWID")

    def setdefault(self, key: str | bytes, value: str | int) -> str | int:
        """Returns what came with `key` the first time: `value`, if that is now.

        Raises:
            sqlite3.OperationalError: the disk is full.
        """
        insert = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, value))
        return value if insert.rowcount else self.get(key)

    def get(self, key: str | bytes) -> str | int:
        """Returns what came with `key`, which was seen, the first time."""
        return self._database.execute("SELECT value FROM seen WHERE key = ?", (key,)).fetchone()[0]

    def replace(self, key: str | bytes, value: str | int) -> None:
        """Keeps another value for `key`, which was seen."""
        self._database.execute("UPDATE seen SET value = ? WHERE key = ?", (value, key))
