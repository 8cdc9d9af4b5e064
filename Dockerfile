# One image for web, worker and release (compose.yaml, fly.toml): the command says which. Settings come from the
# environment when it runs; none is in the image.
FROM python:3.11-slim-bookworm AS packages
COPY requirements.txt /tmp/requirements.txt
# Wheels only: nothing is compiled, so no compiler is needed and nothing runs while it is installed.
RUN ["python", "-m", "venv", "/opt/venv"]
RUN ["/opt/venv/bin/pip", "install", "--no-cache-dir", "--disable-pip-version-check", "--only-binary", ":all:", "--no-deps", "--require-hashes", "-r", "/tmp/requirements.txt"]

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home tallydesk \
    && install --directory --owner tallydesk /srv/tallydesk/var
WORKDIR /srv/tallydesk
COPY --from=packages /opt/venv /opt/venv
# What may come along is listed in .dockerignore.
COPY . .
ENV PATH="/opt/venv/bin:$PATH" PYTHONUNBUFFERED=1
RUN ["python", "-m", "compileall", "-q", "."]
# Whoever breaks in may write nothing but var/, where a SQLite database would live on a volume.
USER tallydesk
EXPOSE 8000
# Of web; a worker shows that it runs in the database instead, and `flask doctor` tells.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:%s/healthz' % (os.environ.get('PORT') or 8000), timeout=4)"]
# Without a shell in between, so that SIGTERM reaches gunicorn and requests under way are finished.
CMD ["gunicorn", "-c", "gunicorn.conf.py", "app:create_app()"]
