# The third way to run: the agent as a container beside (or on) a machine. See docs/container.md.
#
#   docker build --tag nodeagent .                      # downloads what it needs
#   make wheels && docker build --network=none ...      # from build/wheels, without a network
#
# BASE is any glibc image with Python >= 3.11, its venv module, and useradd.
ARG BASE=python:3.12-slim

FROM ${BASE} AS install
COPY . /source
# The wheelhouse is taken only when it was made for this very Python; scripts/wheelhouse marks it so.
RUN python3 -m venv /opt/nodeagent \
    && made_for="/source/build/wheels/.made-for-$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')" \
    && if [ -e "$made_for" ]; then \
           /opt/nodeagent/bin/pip install --no-index --find-links /source/build/wheels nodeagent; \
       else \
           /opt/nodeagent/bin/pip install --no-cache-dir /source; \
       fi

FROM ${BASE}
COPY --from=install /opt/nodeagent /opt/nodeagent
ENV PATH=/opt/nodeagent/bin:$PATH PYTHONUNBUFFERED=1

# An ordinary user by default. Tasks then all run as this user; run the container as root (--user 0) where tasks have
# users of their own.
RUN groupadd --gid 10001 nodeagent \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/nodeagent --shell /usr/sbin/nologin nodeagent \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/nodeagent
USER 10001:10001

# The agent's own folder and the tasks' (its defaults are below this one) must outlive the container: after an upgrade the
# new agent tells the service what became of the old tasks.
VOLUME /var/lib/nodeagent

# SIGTERM stops the agent and with it, other than on a machine, the tasks: a container ends with its first process.
# Run with --init (Kubernetes: shareProcessNamespace), so that orphans of dead shims are reaped.
STOPSIGNAL SIGTERM
ENTRYPOINT ["nodeagent"]
CMD ["agent"]
