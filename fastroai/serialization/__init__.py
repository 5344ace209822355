"""Values as JSON: canonical, tagged, checked by a round trip."""
