//! A session seen from outside: what a client sends, what the owner is asked, what comes back.

mod client;
mod contexts;
mod extended;
mod handshake;
mod limits;
mod splits;
mod table;
mod tls;
mod transmission;
