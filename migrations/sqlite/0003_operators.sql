-- What operators hold in their hands. The oldest schema stays: nodes of the version before go on, and do not hear of it.

-- For which protocol a port is held back. The port as a whole is never given out by chance.
ALTER TABLE reservations ADD COLUMN protocol TEXT NOT NULL DEFAULT 'both'
    CHECK (protocol IN ('tcp', 'udp', 'both'));

-- Live settings hold besides, each with who and when, service instances that are suspended (scope 'suspended', key: the id)
-- and clients that are blocked (scope 'blocked', key: the network). Their history is that of reservations too (scope
-- 'reservations.' and the pool, key: the name), and tells when the announce secret was rotated (scope 'secrets').
CREATE INDEX settings_history_by_revision ON settings_history (revision);
