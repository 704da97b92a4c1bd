-- What is to be added to the monotonic time of a machine, since its start, to get the time of leases:
-- they end when they have to though somebody sets the machine's clock (see LeaseClock).

CREATE TABLE lease_clocks (
    number INTEGER PRIMARY KEY, domain TEXT NOT NULL UNIQUE, ahead REAL NOT NULL
);
