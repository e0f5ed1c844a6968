-- Several nodes on one store: who they are and what they say, what they agree on, and work that outlives a node.

-- What a node says is as fresh as its last heartbeat: nothing is lost with it.
DROP TABLE node_pools;
DROP TABLE nodes;

CREATE TABLE nodes (
    id TEXT NOT NULL PRIMARY KEY,
    -- The process that speaks for the node: of two that claim one name, the later.
    incarnation TEXT NOT NULL,
    version TEXT NOT NULL,
    mode TEXT NOT NULL,
    -- The last revision that it has applied whole.
    applied BIGINT NOT NULL,
    flows BIGINT NOT NULL,
    -- How many ports it cannot bind, and the latest of them as JSON.
    failed BIGINT NOT NULL,
    failures TEXT NOT NULL,
    -- Whether an operator wants it drained.
    drain BIGINT NOT NULL CHECK (drain IN (0, 1)),
    joined_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL
);

CREATE TABLE node_pools (
    node_id TEXT NOT NULL REFERENCES nodes (id),
    pool TEXT NOT NULL,
    PRIMARY KEY (node_id, pool)
);

-- Pools as all nodes have agreed on them; the definition is JSON.
CREATE TABLE pools (
    name TEXT NOT NULL PRIMARY KEY,
    definition TEXT NOT NULL,
    revision BIGINT NOT NULL
);

-- Provisions that were answered before they were done. One that has been done has no row; one that has failed says why.
CREATE TABLE operations (
    service_instance_id TEXT NOT NULL PRIMARY KEY,
    -- Who works on it, while it is under way.
    node_id TEXT NOT NULL,
    failure TEXT,
    changed_at BIGINT NOT NULL
);

-- The revision that freed a port, so that every node learns of it.
ALTER TABLE allocations ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
CREATE INDEX allocations_freed_by_revision ON allocations (revision) WHERE service_instance_id IS NULL;

-- The oldest version of the schema whose nodes can work on this one. A step that only adds leaves it, so that nodes of the
-- version before go on while others are upgraded; one that would break them raises it.
CREATE TABLE compatibility (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    oldest_schema BIGINT NOT NULL
);
INSERT INTO compatibility (id, oldest_schema) VALUES (1, 2);
