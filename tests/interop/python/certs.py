"""Makes a private CA and what it signs, in a folder: `certs.py FOLDER`."""

import pathlib
import sys

import trustme

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)


def write(name, pair):
    pair.private_key_pem.write_to_path(folder / f"{name}.key")
    pair.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")


ca = trustme.CA(organization_name="longrunning interop")
ca.cert_pem.write_to_path(folder / "ca.pem")
write("server", ca.issue_cert("localhost", "127.0.0.1"))
write("elsewhere", ca.issue_cert("elsewhere.example"))
write("client", ca.issue_cert("client@interop.example", common_name="interop client"))

stranger = trustme.CA(organization_name="nobody you know")
stranger.cert_pem.write_to_path(folder / "stranger-ca.pem")
write("stranger", stranger.issue_cert("client@interop.example", common_name="stranger"))
