//! Every statement, once, in text that SQLite and PostgreSQL both take. A test prepares each of them.

/// Defines statements, and a list of all of them for the test.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $text:expr;)*) => {
        $($(#[$doc])* pub(super) const $name: &str = $text;)*

        /// Every statement that a store runs, by name. Tests prepare each of them on each engine.
        pub const ALL: &[(&str, &str)] = &[$((stringify!($name), $name)),*];
    };
}

macro_rules! select_instance {
    ($rest:literal) => {
        concat!(
            "SELECT s.id, s.plan_id, a.pool, a.port, s.protocol, s.requested_port, s.settings, s.organization_id, ",
            "s.space_id, s.name, s.node_id, s.created_at, s.revision ",
            "FROM service_instances s JOIN allocations a ON a.service_instance_id = s.id ",
            $rest
        )
    };
}

macro_rules! select_binding {
    ($rest:literal) => {
        concat!(
            "SELECT id, service_instance_id, app_id, space_id, announce, predecessor_id, created_at, revision ",
            "FROM bindings ",
            $rest
        )
    };
}

macro_rules! select_port {
    ($rest:literal) => {
        concat!(
            "SELECT port, service_instance_id, released_by, released_at, quarantined_until FROM allocations ",
            $rest
        )
    };
}

statements! {
    REVISION = "SELECT revision FROM revision_counter";
    SET_REVISION = "UPDATE revision_counter SET revision = $1";
    /// Zero where nothing was ever kept.
    COUNT_ANYTHING = "SELECT revision + (SELECT count(*) FROM secrets) + (SELECT count(*) FROM nodes) \
        + (SELECT count(*) FROM service_instances) + (SELECT count(*) FROM allocations) + (SELECT count(*) FROM bindings) \
        + (SELECT count(*) FROM reservations) + (SELECT count(*) FROM pools) + (SELECT count(*) FROM operations) \
        + (SELECT count(*) FROM tombstones) + (SELECT count(*) FROM settings) + (SELECT count(*) FROM settings_history) \
        FROM revision_counter";
    RAISE_REVISION = "UPDATE revision_counter SET revision = revision + 1 RETURNING revision";

    INSTANCE = select_instance!("WHERE s.id = $1");
    INSTANCES_AT = select_instance!("WHERE a.pool = $1 AND a.port >= $2 AND a.port <= $3 ORDER BY a.port");
    /// One service instance at most has any one revision; so have bindings.
    INSTANCES_AFTER = select_instance!("WHERE s.revision > $1 ORDER BY s.revision");
    INSERT_INSTANCE = "INSERT INTO service_instances (id, plan_id, protocol, requested_port, settings, organization_id, \
        space_id, name, node_id, created_at, revision) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    UPDATE_INSTANCE = "UPDATE service_instances SET plan_id = $2, protocol = $3, settings = $4, name = $5, revision = $6 \
        WHERE id = $1";
    MARK_INSTANCE = "UPDATE service_instances SET revision = $2 WHERE id = $1";
    DELETE_INSTANCE = "DELETE FROM service_instances WHERE id = $1";

    PORT = select_port!("WHERE pool = $1 AND port = $2");
    PORTS = select_port!("WHERE pool = $1 ORDER BY port");
    ALLOCATED_PORTS = "SELECT port FROM allocations \
        WHERE pool = $1 AND port >= $2 AND port <= $3 AND service_instance_id IS NOT NULL";
    /// Changes no row when the port is allocated: here it is decided who gets it.
    TAKE_PORT = "INSERT INTO allocations (pool, port, service_instance_id) VALUES ($1, $2, $3) \
        ON CONFLICT (pool, port) DO UPDATE SET service_instance_id = excluded.service_instance_id \
        WHERE allocations.service_instance_id IS NULL";
    RELEASE_PORT = "UPDATE allocations SET service_instance_id = NULL, released_by = $2, released_at = $3, \
        quarantined_until = $4, revision = $5 WHERE service_instance_id = $1";
    FREED_AFTER = "SELECT pool, port, released_by, released_at, quarantined_until FROM allocations \
        WHERE service_instance_id IS NULL AND revision > $1 ORDER BY pool, port";
    /// Gives a port back that was allocated for the first time …
    FORGET_PORT = "DELETE FROM allocations WHERE service_instance_id = $1 AND released_at IS NULL";
    /// … and one that has a last release.
    GIVE_BACK_PORT = "UPDATE allocations SET service_instance_id = NULL WHERE service_instance_id = $1";

    LAST_RELEASES = "SELECT pool, port, released_by, released_at, quarantined_until, revision FROM allocations \
        WHERE released_at IS NOT NULL ORDER BY pool, port";
    /// Beside whoever has the port.
    PUT_LAST_RELEASE = "INSERT INTO allocations (pool, port, released_by, released_at, quarantined_until, revision) \
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (pool, port) DO UPDATE SET released_by = excluded.released_by, \
        released_at = excluded.released_at, quarantined_until = excluded.quarantined_until, revision = excluded.revision";

    RESERVATIONS =
        "SELECT pool, name, first_port, last_port, protocol FROM reservations WHERE pool = $1 ORDER BY name";
    ALL_RESERVATIONS =
        "SELECT pool, name, first_port, last_port, protocol, revision FROM reservations ORDER BY pool, name";
    COUNT_RESERVATIONS_OF_PORT =
        "SELECT count(*) FROM reservations WHERE pool = $1 AND first_port <= $2 AND last_port >= $2";
    COUNT_RESERVATIONS_IN_THE_WAY = "SELECT count(*) FROM reservations WHERE pool = $1 \
        AND (name = $2 OR (first_port <= $4 AND last_port >= $3 \
        AND (protocol = $5 OR protocol = 'both' OR CAST($5 AS TEXT) = 'both')))";
    INSERT_RESERVATION = "INSERT INTO reservations (pool, name, first_port, last_port, protocol, revision) \
        VALUES ($1, $2, $3, $4, $5, $6)";
    /// The change that made each, as far as the history goes back.
    RESERVATION_CHANGES = "SELECT h.scope, h.key, h.value, h.changed_by, h.changed_at, h.revision FROM reservations r \
        JOIN settings_history h ON h.revision = r.revision AND h.scope = $2 AND h.key = r.name \
        WHERE r.pool = $1 ORDER BY r.name";
    DELETE_RESERVATION = "DELETE FROM reservations WHERE pool = $1 AND name = $2";
    /// What the history calls the reservations of a pool, of pools that have changed.
    RESERVATIONS_CHANGED_AFTER = "SELECT DISTINCT scope FROM settings_history \
        WHERE revision > $1 AND scope LIKE 'reservations.%' ORDER BY scope";

    POOLS = "SELECT name, definition, revision FROM pools ORDER BY name";
    POOLS_AFTER = "SELECT definition FROM pools WHERE revision > $1 ORDER BY name";
    COUNT_POOL_AFTER = "SELECT count(*) FROM pools WHERE name = $1 AND revision > $2";
    COUNT_POOL = "SELECT count(*) FROM pools WHERE name = $1";
    /// What keeps a pool from being dropped.
    COUNT_NEEDS_OF_POOL = "SELECT (SELECT count(*) FROM pools WHERE name = $1 AND revision > $2) \
        + (SELECT count(*) FROM node_pools WHERE pool = $1) + (SELECT count(*) FROM reservations WHERE pool = $1) \
        + (SELECT count(*) FROM allocations WHERE pool = $1 AND service_instance_id IS NOT NULL)";
    DELETE_POOL = "DELETE FROM pools WHERE name = $1";
    POOLS_DROPPED_AFTER = "SELECT DISTINCT key FROM settings_history WHERE revision > $1 AND scope = 'blocks' \
        AND key NOT IN (SELECT name FROM pools) ORDER BY key";
    PUT_POOL = "INSERT INTO pools (name, definition, revision) VALUES ($1, $2, $3) \
        ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, revision = excluded.revision";

    OPERATION = "SELECT service_instance_id, node_id, failure, changed_at FROM operations \
        WHERE service_instance_id = $1 AND (failure IS NULL OR changed_at > $2)";
    OPERATIONS = "SELECT service_instance_id, node_id, failure, changed_at FROM operations \
        WHERE failure IS NULL ORDER BY service_instance_id";
    COUNT_OPERATION_ON = "SELECT count(*) FROM operations \
        WHERE service_instance_id = $1 AND node_id = $2 AND failure IS NULL";
    ALL_OPERATIONS = "SELECT service_instance_id, node_id, failure, changed_at FROM operations \
        ORDER BY service_instance_id";
    INSERT_OPERATION = "INSERT INTO operations (service_instance_id, node_id, changed_at) VALUES ($1, $2, $3)";
    TAKE_UP_OPERATION = "UPDATE operations SET node_id = $3, changed_at = $4 \
        WHERE service_instance_id = $1 AND node_id = $2 AND failure IS NULL";
    FAIL_OPERATION = "UPDATE operations SET failure = $2, changed_at = $3 WHERE service_instance_id = $1";
    END_OPERATION = "DELETE FROM operations WHERE service_instance_id = $1 AND node_id = $2 AND failure IS NULL";
    FORGET_OPERATION = "DELETE FROM operations WHERE service_instance_id = $1";
    DROP_OPERATIONS = "DELETE FROM operations WHERE failure IS NOT NULL AND changed_at <= $1";

    BINDING = select_binding!("WHERE id = $1");
    BINDINGS_AFTER = select_binding!("WHERE revision > $1 ORDER BY revision");
    INSERT_BINDING = "INSERT INTO bindings (id, service_instance_id, app_id, space_id, announce, predecessor_id, \
        created_at, revision) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    DELETE_BINDING = "DELETE FROM bindings WHERE id = $1";
    DELETE_BINDINGS_OF = "DELETE FROM bindings WHERE service_instance_id = $1";

    TOMBSTONES_AFTER = "SELECT kind, id, revision FROM tombstones WHERE revision > $1 ORDER BY revision, id";
    BURY = "INSERT INTO tombstones (kind, id, revision) VALUES ($1, $2, $3)";
    BURY_BINDINGS_OF = "INSERT INTO tombstones (kind, id, revision) \
        SELECT 'binding', id, CAST($2 AS BIGINT) FROM bindings WHERE service_instance_id = $1";
    UNBURY = "DELETE FROM tombstones WHERE kind = $1 AND id = $2";
    DROP_TOMBSTONES = "DELETE FROM tombstones WHERE revision <= $1";

    MEMBERS = "SELECT id, incarnation, version, mode, applied, flows, failed, failures, drain, joined_at, seen_at FROM nodes \
        ORDER BY id";
    POOLS_OF_NODES = "SELECT node_id, pool FROM node_pools ORDER BY node_id, pool";
    INCARNATION_OF_NODE = "SELECT incarnation FROM nodes WHERE id = $1";
    /// The wish to have it drained stays.
    PUT_NODE = "INSERT INTO nodes (id, incarnation, version, mode, applied, flows, failed, failures, drain, joined_at, \
        seen_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (id) DO UPDATE SET \
        incarnation = excluded.incarnation, version = excluded.version, mode = excluded.mode, applied = excluded.applied, \
        flows = excluded.flows, failed = excluded.failed, failures = excluded.failures, \
        joined_at = excluded.joined_at, seen_at = excluded.seen_at";
    REPORT = "UPDATE nodes SET mode = $3, applied = $4, flows = $5, failed = $6, failures = $7, seen_at = $8 \
        WHERE id = $1 AND incarnation = $2";
    SET_DRAIN = "UPDATE nodes SET drain = $2 WHERE id = $1";
    DELETE_NODE = "DELETE FROM nodes WHERE id = $1";
    DELETE_POOLS_OF_NODE = "DELETE FROM node_pools WHERE node_id = $1";
    INSERT_POOL_OF_NODE = "INSERT INTO node_pools (node_id, pool) VALUES ($1, $2)";

    SETTINGS = "SELECT scope, key, value, changed_by, changed_at, revision FROM settings ORDER BY scope, key";
    INSERT_SETTING =
        "INSERT INTO settings (scope, key, value, changed_by, changed_at, revision) VALUES ($1, $2, $3, $4, $5, $6)";
    PUT_SETTING = "INSERT INTO settings (scope, key, value, changed_by, changed_at, revision) \
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (scope, key) DO UPDATE SET value = excluded.value, \
        changed_by = excluded.changed_by, changed_at = excluded.changed_at, revision = excluded.revision";
    DELETE_SETTING = "DELETE FROM settings WHERE scope = $1 AND key = $2";
    /// Of those that are kept in the table of settings.
    COUNT_SETTINGS_CHANGED_AFTER = "SELECT count(*) FROM settings_history \
        WHERE revision > $1 AND scope NOT IN ('secrets', 'blocks') AND scope NOT LIKE 'reservations.%'";
    COUNT_SECRETS_CHANGED_AFTER = "SELECT count(*) FROM settings_history WHERE revision > $1 AND scope = 'secrets'";
    LAST_SETTING_CHANGES = "SELECT scope, key, value, changed_by, changed_at, revision FROM settings_history \
        ORDER BY revision DESC, scope, key LIMIT $1";
    /// All but the last so many; those that whoever follows has to be told stay.
    DROP_SETTING_CHANGES = "DELETE FROM settings_history WHERE revision <= $2 AND revision < (SELECT min(revision) \
        FROM (SELECT revision FROM settings_history ORDER BY revision DESC LIMIT $1) AS kept)";
    SETTINGS_HISTORY = "SELECT scope, key, value, changed_by, changed_at, revision FROM settings_history \
        ORDER BY revision, scope, key";
    INSERT_SETTING_CHANGE = "INSERT INTO settings_history (scope, key, value, changed_by, changed_at, revision) \
        VALUES ($1, $2, $3, $4, $5, $6)";

    SECRET = "SELECT value FROM secrets WHERE name = $1";
    INSERT_SECRET = "INSERT INTO secrets (name, value) VALUES ($1, $2)";
    DELETE_SECRET = "DELETE FROM secrets WHERE name = $1";
}
