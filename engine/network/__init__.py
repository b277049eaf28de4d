"""Container networks: bridges, addresses, published ports. Entry point: ``engine.network.service.NetworkService``."""
