//! nginx with its stream module, TCP and UDP.

use std::{fs, path::Path, process::Command};

use super::{Peer, Process, Site, WORKERS, version_line};

/// Where packages put the module when it is not built in.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

#[derive(Debug)]
pub struct Nginx;

impl Peer for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn version(&self) -> anyhow::Result<String> {
        // nginx version: nginx/1.22.1
        let line = version_line(Command::new("nginx").arg("-v"))?;
        Ok(line.rsplit('/').next().unwrap_or(&line).to_owned())
    }

    fn start(&self, site: &Site) -> anyhow::Result<Option<Process>> {
        let directory = site.directory.display();
        let module = if Path::new(MODULE).exists() { format!("load_module {MODULE};") } else { String::new() };
        // Sockets of their own for each worker pay with few ports; with thousands they only double them.
        let reuseport = if site.ports.len() > 1 { "" } else { " reuseport" };
        let mut servers = String::new();
        for port in &site.ports {
            let backend = site.backend;
            servers += &format!(
                "    server {{ listen 127.0.0.1:{port}{reuseport}; proxy_pass {backend}; proxy_half_close on; \
                 proxy_timeout 1h; }}\n"
            );
            if site.udp {
                servers += &format!(
                    "    server {{ listen 127.0.0.1:{port} udp{reuseport} rcvbuf=4m; proxy_pass {backend}; \
                     proxy_timeout 60s; }}\n"
                );
            }
        }
        let config = format!(
            "{module}
user root;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
worker_processes {WORKERS};
worker_rlimit_nofile 20000;
events {{ worker_connections 19500; }}
stream {{
{servers}}}
"
        );
        let path = site.directory.join("nginx.conf");
        fs::write(&path, config)?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&site.directory).arg("-c").arg(path).arg("-e").arg(site.directory.join("error.log"));
        Process::start(&mut command, &site.directory.join("log")).map(Some)
    }
}
