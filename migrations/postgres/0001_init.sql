-- Columns are TEXT and BIGINT only, so that every engine stores the same rows: ids as they were given, flags as 0 and 1,
-- ports as numbers, moments in microseconds since 1970-01-01T00:00:00Z.

-- One row. Raised in the same transaction as every change of the desired state, which marks its rows with it.
CREATE TABLE revision_counter (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    revision BIGINT NOT NULL
);
INSERT INTO revision_counter (id, revision) VALUES (1, 0);

CREATE TABLE service_instances (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    plan_id TEXT COLLATE "C" NOT NULL,
    protocol TEXT COLLATE "C" NOT NULL CHECK (protocol IN ('tcp', 'udp', 'both')),
    -- The port that the user asked for; the one it has is in allocations.
    requested_port BIGINT,
    -- What the user has set, as JSON.
    settings TEXT COLLATE "C" NOT NULL,
    organization_id TEXT COLLATE "C" NOT NULL,
    space_id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C",
    node_id TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    revision BIGINT NOT NULL
);
CREATE INDEX service_instances_by_revision ON service_instances (revision);

-- A port that is allocated (it has a service instance) or was (it has a last release), or both.
CREATE TABLE allocations (
    pool TEXT COLLATE "C" NOT NULL,
    port BIGINT NOT NULL CHECK (port BETWEEN 1024 AND 65535),
    service_instance_id TEXT COLLATE "C" UNIQUE REFERENCES service_instances (id),
    -- The last release: by which space, when, and until when nobody gets the port.
    released_by TEXT COLLATE "C",
    released_at BIGINT,
    quarantined_until BIGINT,
    UNIQUE (pool, port),
    CHECK (service_instance_id IS NOT NULL OR released_at IS NOT NULL),
    CHECK ((released_at IS NULL) = (released_by IS NULL)),
    CHECK ((released_at IS NULL) = (quarantined_until IS NULL))
);

-- Ports held back under a name.
CREATE TABLE reservations (
    pool TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    first_port BIGINT NOT NULL,
    last_port BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    PRIMARY KEY (pool, name),
    CHECK (first_port <= last_port)
);

CREATE TABLE bindings (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    service_instance_id TEXT COLLATE "C" NOT NULL REFERENCES service_instances (id),
    app_id TEXT COLLATE "C",
    space_id TEXT COLLATE "C",
    announce BIGINT NOT NULL CHECK (announce IN (0, 1)),
    predecessor_id TEXT COLLATE "C",
    created_at BIGINT NOT NULL,
    revision BIGINT NOT NULL
);
CREATE INDEX bindings_by_service_instance ON bindings (service_instance_id);
CREATE INDEX bindings_by_revision ON bindings (revision);

-- What was deleted, so that whoever follows the revisions learns of it. Old ones are dropped.
CREATE TABLE tombstones (
    kind TEXT COLLATE "C" NOT NULL CHECK (kind IN ('service_instance', 'binding')),
    id TEXT COLLATE "C" NOT NULL,
    revision BIGINT NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE INDEX tombstones_by_revision ON tombstones (revision, id);

CREATE TABLE nodes (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    seen_at BIGINT NOT NULL
);

CREATE TABLE node_pools (
    node_id TEXT COLLATE "C" NOT NULL REFERENCES nodes (id),
    pool TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (node_id, pool)
);

-- Live settings. A value wins over the configuration file until it is unset.
CREATE TABLE settings (
    scope TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    changed_by TEXT COLLATE "C" NOT NULL,
    changed_at BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    PRIMARY KEY (scope, key)
);

-- Every change of a live setting; a NULL value is an unset.
CREATE TABLE settings_history (
    revision BIGINT NOT NULL,
    scope TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C",
    changed_by TEXT COLLATE "C" NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (revision, scope, key)
);

-- What the store makes once, in hexadecimal digits.
CREATE TABLE secrets (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value TEXT COLLATE "C" NOT NULL
);
