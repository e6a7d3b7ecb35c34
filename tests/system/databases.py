"""Whole databases of a case: copied, put back and dropped. A URL says on which server, and which one."""

import psycopg
from psycopg import sql


def name_of(url):
    return url.rpartition("/")[2]


def beside(url, name):
    """The URL of another database of the same server."""
    return f"{url.rpartition('/')[0]}/{name}"


def admin(case, url, *statements):
    """Runs statements about databases of the URL's server; their sessions may take a moment to end."""

    def done():
        try:
            connection.execute(statement)
        except psycopg.errors.ObjectInUse:
            return False
        return True

    with psycopg.connect(beside(url, "postgres"), autocommit=True) as connection:
        for statement in statements:
            case.wait(done, f"nobody connected: {statement.as_string(connection)}")


def copy_database(case, url, name):
    """Its copy's URL."""
    admin(case, url, sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(name_of(url))))
    return beside(url, name)


def restore(case, url, backup):
    """The backup takes the database's place."""
    names = sql.Identifier(name_of(url)), sql.Identifier(backup)
    admin(case, url, sql.SQL("DROP DATABASE {}").format(names[0]), sql.SQL("ALTER DATABASE {1} RENAME TO {0}").format(*names))
