"""Listeners with SASL and TLS, for tests: certificates made here, three SCRAM users, JWTs that nobody signs, ACLs."""
import shutil
import subprocess

from .process import StackError

# Not secret: they open a server on the loopback address that holds invented data. Who is none of `SUPER_USERS` may do what
# ACLs allow, and there are none to begin with.
PASSWORDS = {
    "feed-admin": "admin-password-of-the-local-stack",
    "feed-worker": "worker-password-of-the-local-stack",
    "feed-rec-producer": "producer-password-of-the-local-stack",
}
# ANONYMOUS: the listeners without SASL, so the brokers themselves. CN=client: the certificate made here.
SUPER_USERS = ["ANONYMOUS", "feed-admin", "CN=client"]
KEY_PASSWORD = "key-password-of-the-local-stack"
# What a broker presents, what a client may present, and a CA that has signed neither.
_CLIENT, _OTHER = "client", "other-ca"


def folder(settings):
    return settings.folder / "tls"


def make_certificates(settings):
    """`ca.pem`, `broker.pem` (with its key), `client.pem`, `client.key`, `client-locked.key`, `other-ca.pem`: for two days, for `localhost` alone."""
    where = folder(settings)
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    for name in ("ca", _OTHER):
        _openssl(where, "req", "-x509", *_new_key(name), "-out", f"{name}.pem", "-subj", f"/CN={name}", "-days", "2")
    for name in ("broker", _CLIENT):
        (where / f"{name}.cnf").write_text("subjectAltName=DNS:localhost\n")
        _openssl(where, "req", *_new_key(name), "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed_by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
        request = ["-req", "-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", f"{name}.cnf", "-days", "2"]
        _openssl(where, "x509", *request, *signed_by)
    locked = ["-topk8", "-v2", "aes-256-cbc", "-passout", f"pass:{KEY_PASSWORD}"]
    _openssl(where, "pkcs8", *locked, "-in", f"{_CLIENT}.key", "-out", f"{_CLIENT}-locked.key")
    # Kafka reads key and certificate from one file.
    (where / "broker-both.pem").write_text((where / "broker.key").read_text() + (where / "broker.pem").read_text())


def _new_key(name):
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]


def _openssl(where, *arguments):
    done = subprocess.run(["openssl", *arguments], cwd=where, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StackError(f"openssl {arguments[0]}: {done.stderr}")


def properties(settings, node):
    """What a broker's configuration gets besides."""
    where = folder(settings)
    modules = "org.apache.kafka.common.security"
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": where / "broker-both.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": where / "ca.pem",
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-512,OAUTHBEARER",
        "listener.name.secure.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
        # Takes any JWT with `alg: none` that has not expired.
        "listener.name.secure.oauthbearer.sasl.jaas.config": (
            f'{modules}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": ";".join(f"User:{name}" for name in SUPER_USERS),
        "allow.everyone.if.no.acl.found": "false",
    }


def listeners(settings, node):
    """name → (protocol, address)"""
    ports = settings.ports
    return {
        "SECURE": ("SASL_SSL", f"localhost:{ports[f'sasl-ssl-{node}']}"),
        "MUTUAL": ("SSL", f"localhost:{ports[f'ssl-{node}']}"),
    }


def format_options():
    """The SCRAM users are part of a new cluster's first records."""
    users = [f"SCRAM-SHA-512=[name={user},password={password}]" for user, password in PASSWORDS.items()]
    return [word for user in users for word in ("--add-scram", user)]
