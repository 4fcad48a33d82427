"""An agent's packages, to be killed: `python package_killed.py URL KEY FOLDER`; the package is JSON on stdin."""

import asyncio
import sys
from pathlib import Path

from nodeagent.agent import failpoints
from nodeagent.agent.database import Database
from nodeagent.agent.packages import Packages
from nodeagent.model.protocol import ApplicationPackage, TransferPhase
from nodeagent.transfer.base import Meter, TransferSettings
from nodeagent.transfer.packages import PackageInstaller


async def main() -> None:
    """Install one package, and say where it is."""
    url, key, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    package = ApplicationPackage.from_json(sys.stdin.read())
    database = Database(folder / "agent.db")
    await database.open()
    installer = PackageInstaller(TransferSettings(), folder / "applications", url, key, 1 << 30, reached=failpoints.hit)
    async with installer.connected():
        packages = Packages(database, installer)
        await packages.open()
        found = await packages.ensure([package], Meter("a", TransferPhase.INSTALLING))
    await database.close()
    sys.stdout.write(found["AZ_BATCH_APP_PACKAGE_app"])


asyncio.run(main())
