"""The composition root and the commands: deploy, the local stack, the tour, batch submission."""
