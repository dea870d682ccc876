"""Real peers: other WebSocket libraries, as clients and as servers, against ours."""
