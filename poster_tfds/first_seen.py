"""Which keys came before, for more of them than memory should hold."""

import sqlite3


class FirstSeen:
    """Keys and what came with each the first time, in a temporary file of SQLite.

    A few MB of it are in memory, however many keys there are. The file has no name and is
    gone with the process.
    """

    def __init__(self):
        """Begins without keys."""
        self._database = sqlite3.connect("")
        self._database.execute("CREATE TABLE seen (key PRIMARY KEY, value) WITHOUT ROWID")

    def setdefault(self, key: str | bytes, value: str | int) -> str | int:
        """Returns what came with `key` the first time: `value`, if that is now.

        Raises:
            sqlite3.OperationalError: the disk is full.
        """
        insert = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, value))
        if insert.rowcount:
            return value
        return self._database.execute("SELECT value FROM seen WHERE key = ?", (key,)).fetchone()[0]
