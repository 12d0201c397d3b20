"""What Flower starts on a device. It trains this app's own task without further permission."""

from edge_client.client_app import make_client_app

app = make_client_app(allow_tasks=["flower_app.task:FlowerAppTask"])
