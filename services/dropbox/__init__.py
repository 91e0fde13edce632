"""The folder that we host for customers: an SFTP server with one folder for each organization."""
