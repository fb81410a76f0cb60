"""The command lines of the components: pure functions of where things are and which ports they have.

Everything binds 127.0.0.1 alone; controller-manager, scheduler and kwok serve no port at all.
"""

from dataclasses import dataclass
from pathlib import Path

from . import certs
from .binaries import Binaries

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
KWOK = "kwok"

ISSUER = "https://kubernetes.default.svc.cluster.local"
SERVICE_ADDRESSES = "10.96.0.0/16"
# kwok hands these to pods, from the first upwards and past the end if there are more pods.
POD_ADDRESSES = "10.128.0.0/9"
# The defaults (20 and 30 requests a second) are slower than what the tests measure.
CLIENT_RATE = ("--kube-api-qps=500", "--kube-api-burst=1000")


@dataclass(frozen=True)
class Layout:
    """Where one plane has its files and ports."""

    directory: Path
    binaries: Binaries
    api_port: int
    etcd_port: int
    etcd_peer_port: int

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.api_port}"

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    @property
    def stages(self) -> Path:
        return self.directory / "kwok.yaml"

    def kubeconfig(self, client: str) -> Path:
        return self.directory / ("kubeconfig" if client == certs.ADMIN else f"kubeconfig-{client}")


def command(name: str, at: Layout) -> list[str]:
    """The command line of a component."""
    arguments = {
        ETCD: _etcd,
        API_SERVER: _api_server,
        CONTROLLER_MANAGER: _controller_manager,
        SCHEDULER: _scheduler,
        KWOK: _kwok,
    }[name](at)
    return [str(at.binaries.path(name)), *arguments]


def _etcd(at: Layout) -> list[str]:
    client, peer = f"https://127.0.0.1:{at.etcd_port}", f"https://127.0.0.1:{at.etcd_peer_port}"
    return [
        "--name=plane",
        f"--data-dir={at.directory / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=plane={peer}",
        f"--cert-file={at.pki / 'etcd.crt'}",
        f"--key-file={at.pki / 'etcd.key'}",
        f"--trusted-ca-file={at.pki / 'etcd-ca.crt'}",
        "--client-cert-auth",
        f"--peer-cert-file={at.pki / 'etcd.crt'}",
        f"--peer-key-file={at.pki / 'etcd.key'}",
        f"--peer-trusted-ca-file={at.pki / 'etcd-ca.crt'}",
        "--peer-client-cert-auth",
        # The data must survive a killed process, not a power cut: no test pulls the plug.
        "--unsafe-no-fsync",
        # The port is reserved by a socket that does not listen; see `ports.reserve`.
        "--socket-reuse-port",
        "--log-level=warn",
    ]


def _api_server(at: Layout) -> list[str]:
    pki = at.pki
    return [
        f"--etcd-servers=https://127.0.0.1:{at.etcd_port}",
        f"--etcd-cafile={pki / 'etcd-ca.crt'}",
        f"--etcd-certfile={pki / 'apiserver-etcd.crt'}",
        f"--etcd-keyfile={pki / 'apiserver-etcd.key'}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={at.api_port}",
        "--permit-port-sharing",
        # A loopback address may not be an endpoint of the `kubernetes` Service.
        "--endpoint-reconciler-type=none",
        f"--service-cluster-ip-range={SERVICE_ADDRESSES}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        "--anonymous-auth=false",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={pki / 'service-account.pub'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        # For aggregated APIs (a metrics server that a test registers), as on any real cluster.
        f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki / 'front-proxy.crt'}",
        f"--proxy-client-key-file={pki / 'front-proxy.key'}",
        "--profiling=false",
    ]


def _controller_manager(at: Layout) -> list[str]:
    return [
        f"--kubeconfig={at.kubeconfig(certs.CONTROLLER_MANAGER)}",
        "--secure-port=0",
        "--leader-elect=false",
        # One client for all controllers instead of one ServiceAccount token each: ready sooner.
        "--use-service-account-credentials=false",
        *CLIENT_RATE,
        f"--root-ca-file={at.pki / 'ca.crt'}",
        f"--service-account-private-key-file={at.pki / 'service-account.key'}",
        f"--cluster-signing-cert-file={at.pki / 'ca.crt'}",
        f"--cluster-signing-key-file={at.pki / 'ca.key'}",
        # Tests wait for what an autoscaler does; the default is 15 s.
        "--horizontal-pod-autoscaler-sync-period=2s",
        # A paused API server or a busy machine must not look like dead nodes, or pods are evicted.
        "--node-monitor-grace-period=10m",
        "--profiling=false",
    ]


def _scheduler(at: Layout) -> list[str]:
    return [
        f"--kubeconfig={at.kubeconfig(certs.SCHEDULER)}",
        f"--authentication-kubeconfig={at.kubeconfig(certs.SCHEDULER)}",
        f"--authorization-kubeconfig={at.kubeconfig(certs.SCHEDULER)}",
        "--secure-port=0",
        "--leader-elect=false",
        *CLIENT_RATE,
        "--profiling=false",
    ]


def _kwok(at: Layout) -> list[str]:
    return [
        f"--kubeconfig={at.kubeconfig(certs.KWOK)}",
        f"--config={at.stages}",
        "--manage-all-nodes=true",
        f"--cidr={POD_ADDRESSES}",
        "--node-ip=10.127.0.1",
        # At the default level it writes a line for each pod, which bulk tests would pay for.
        "--v=WARN",
    ]
