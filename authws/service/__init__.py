"""The service: settings, routes, pages and the server that runs them."""
