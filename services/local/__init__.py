"""The whole product on one machine: embedded servers, receivers, a simulated fleet."""
