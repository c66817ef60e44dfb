complete -c eskerd -l data -d 'Folder of this node: its identity, its sockets, and its store unless --store names others' -r -F
complete -c eskerd -l config -d 'TOML file with the same settings; the command line wins' -r -F
complete -c eskerd -l store -d 'Device or file to use as a store; may be repeated [default: DIR/store-0.esker]' -r -F
complete -c eskerd -l store-size -d 'Size of a store file that has to be created [default: 16GiB]' -r
complete -c eskerd -l cache-size -d 'Memory per store for its map cache [default: chosen by the store]' -r
complete -c eskerd -l scrub-rate -d 'Bytes of each store that are read and checked a second in the background, or `none` [default: 16MiB]' -r
complete -c eskerd -l snapshot-schedule -d 'When volumes that are created without a schedule get snapshots, and how many are kept, like `hourly keep 24, daily keep 7` [default: none]' -r
complete -c eskerd -l rewind -d 'How far back volumes that are created without a window can be had at any second, like 6h [default: none]' -r
complete -c eskerd -l nbd -d 'TCP address for NBD, repeatable, or none; with TLS other than --nbd-tls says: HOST:PORT,tls=MODE [default: 127.0.0.1:10809]' -r
complete -c eskerd -l metrics -d 'Address for Prometheus metrics, or none [default: 127.0.0.1:9809]' -r
complete -c eskerd -l admin -d 'TCP address for the admin API, or none; only for those with a certificate of the authority that --tls-ca names, which says what they may do [default: none]' -r
complete -c eskerd -l log-format -d 'How lines of the log look: text or json [default: text]' -r
complete -c eskerd -l slow-request -d 'Warn of requests that take this long, like 500ms, or none [default: 1s]' -r
complete -c eskerd -l tls-cert -d 'Certificate of this node in PEM, with those between it and the authority, or none [default: none]' -r
complete -c eskerd -l tls-key -d 'The certificate\'s key in PEM, which nobody else may read' -r
complete -c eskerd -l tls-ca -d 'Authorities of clients in PEM; without them clients need no certificate [default: none]' -r
complete -c eskerd -l nbd-tls -d 'TLS on TCP addresses for NBD that do not say it themselves: off, allow or require [default: require with --tls-cert, else off]' -r
complete -c eskerd -l nbd-socket-tls -d 'TLS on unix sockets for NBD: off, allow or require [default: off]' -r
complete -c eskerd -l sandbox-probe -d 'Try to read, write and run this file from within the sandbox, and tell how that went' -r -F
complete -c eskerd -l dist -d 'Write the man page and completions into folders of this folder' -r -F
complete -c eskerd -l check-config -d 'Check the settings, say so, and exit; touches nothing'
complete -c eskerd -l no-sandbox -d 'Keep all that the user may do, for looking into the process with other tools'
complete -c eskerd -s h -l help -d 'Print help'
complete -c eskerd -s V -l version -d 'Print version'
