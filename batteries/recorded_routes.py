"""Patch for an app under test that writes its routes and their methods into the file named by ROUTES."""

RECORD_ROUTES = """
import contextlib, json, os
from peft_core.access import guard
make_lifespan = guard.guard_lifespan
def lifespan_that_records_routes(*arguments, **options):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        routes = {path: list(methods) for path, methods in app.openapi()["paths"].items()}
        with open(os.environ["ROUTES"], "w") as file:
            json.dump(routes, file)
        async with make_lifespan(*arguments, **options)(app):
            yield
    return lifespan
guard.guard_lifespan = lifespan_that_records_routes
"""
